//! What the device offers, and what of it is used.

use std::time::Duration;

use super::admin::{AdminError, Opcode};
use super::features::{self, Attributes, Hints, Limits, LlqLayout, Offloads};
use super::{Ena, events, host, rx, tx};
use crate::device::DeviceError;
use crate::offload::Capabilities;

/// Entries of a ring, where the device has so many; a power of two.
const DEPTH: u32 = 1024;
/// The longest frame that is cut must fit into the buffers of a ring twice.
pub const LEAST_DEPTH: u32 = 128;
/// Bytes of a frame's header that its longest packet does not count: Ethernet and a VLAN tag.
const HEADER: u32 = 18;
/// Shortest packet that every network carries (RFC 791).
const LEAST_MTU: u32 = 68;

/// What the device offers, and what of it is used.
#[derive(Clone, Copy, Debug)]
pub struct Deal {
    pub device: Attributes,
    pub limits: Limits,
    pub offloads: Offloads,
    pub llq: Option<LlqLayout>,
    /// Queues each way.
    pub pairs: u16,
    pub max_frame: u32,
}

impl Ena {
    pub(super) fn take_hints(&mut self, hints: Hints) {
        let time = |hint: u16| Duration::from_millis(hint.into());
        if let Some(read) = hints.read.filter(|read| *read > 0) {
            self.mmio.limit = time(read).min(self.patience.longest);
        }
        if let Some(admin) = hints.admin.filter(|admin| *admin > 0) {
            self.admin.limit = time(admin).min(self.patience.longest);
        }
        if let (Some(limit), true) = (hints.keep_alive, self.keep_alive.is_some()) {
            // Without a limit, an hour: whoever is silent for so long is no device.
            self.keep_alive = Some(if limit == 0 { Duration::from_secs(3600) } else { time(limit) });
        }
        if let Some(limit) = hints.completion {
            self.completion = (limit > 0).then(|| time(limit));
        }
    }

    /// Asks the device what it is, and tells it what is wanted.
    pub(super) fn negotiate(&mut self) -> Result<Deal, (&'static str, AdminError)> {
        fn at<T>(what: &'static str, result: Result<T, AdminError>) -> Result<T, (&'static str, AdminError)> {
            result.map_err(|cause| (what, cause))
        }
        let (admin, mmio) = (&mut self.admin, &self.mmio);
        let address = self.place.address;
        at("host attributes", host::introduce(admin, mmio, &mut self.host_page, address))?;
        let attributes = features::get(admin, mmio, features::DEVICE_ATTRIBUTES, 0);
        let device = Attributes::of(&at("device attributes", attributes)?);
        let limits = at("number of queues", Limits::ask(admin, mmio, &device))?;
        let offloads = match device.has(features::OFFLOADS) {
            true => Offloads::of(&at("offloads", features::get(admin, mmio, features::OFFLOADS, 0))?),
            false => Offloads::default(),
        };
        let hints = match device.has(features::HINTS) {
            true => {
                let reply = at("time limits", features::get(admin, mmio, features::HINTS, 0))?;
                Hints::of([reply[2], reply[3], reply[4]])
            }
            false => Hints::default(),
        };
        let supported = at("events", features::get(admin, mmio, features::EVENTS, 0))?[2] & events::KNOWN;
        let set =
            features::command(Opcode::SetFeature, features::EVENTS, 0).word(features::VALUE + 1, supported);
        at("events", admin.execute(mmio, set))?;
        let llq = match device.has(features::LLQ) {
            true => at("low latency queues", LlqLayout::agree(admin, mmio))?,
            false => None,
        };
        let mtu = device.max_mtu.min(rx::MAX_FRAME - HEADER);
        if device.has(features::MTU) {
            let set = features::command(Opcode::SetFeature, features::MTU, 0).word(features::VALUE, mtu);
            at("longest packet", admin.execute(mmio, set))?;
        }
        let keeps_alive = supported >> events::group::KEEP_ALIVE & 1 != 0;
        self.keep_alive = keeps_alive.then_some(self.patience.keep_alive);
        self.completion = Some(self.patience.completion);
        self.take_hints(hints);
        let most = llq.map_or(limits.pairs, |llq| limits.pairs.min(llq.queues));
        let pairs = most.min(self.wishes.queue_pairs.get().into()) as u16;
        Ok(Deal { device, limits, offloads, llq, pairs, max_frame: mtu + HEADER })
    }

    /// What the device offers must be enough to be used at all.
    pub(super) fn check(&self, deal: &Deal) -> Result<(), DeviceError> {
        let place = &self.place;
        let unusable =
            |what: String| Err(DeviceError::Unsupported(format!("{place}: {what}; it cannot be used")));
        if !deal.device.mac.is_valid_unicast() {
            return unusable(format!("the device has the address {}", deal.device.mac));
        }
        if deal.device.max_mtu < LEAST_MTU {
            return unusable(format!("the device carries packets of {} bytes", deal.device.max_mtu));
        }
        if deal.pairs == 0 || self.depths(deal).into_iter().any(|depth| u32::from(depth) < LEAST_DEPTH) {
            return unusable(format!("the device has too few queues: {:?}", deal.limits));
        }
        // A meta descriptor, a whole frame, and one more where its buffers go around the end.
        if usize::from(deal.limits.transmit_descriptors) < 3 {
            return unusable(format!("a frame has {} descriptors", deal.limits.transmit_descriptors));
        }
        Ok(())
    }

    /// Entries of receive and transmit rings.
    pub(super) fn depths(&self, deal: &Deal) -> [u16; 2] {
        let transmit = deal.llq.map_or(deal.limits.transmit_depth, |llq| {
            // Completions stay in memory of the host.
            llq.depth.min(deal.limits.transmit_depth)
        });
        [deal.limits.receive_depth, transmit].map(|depth| match depth.min(DEPTH).checked_ilog2() {
            Some(log) => 1 << log,
            None => 0,
        })
    }

    pub(super) fn capabilities(deal: &Deal) -> Capabilities {
        let offloads = deal.offloads;
        let cuts = usize::from(deal.limits.transmit_descriptors) >= tx::MOST_DESCRIPTORS;
        Capabilities {
            checksum: offloads.checksum(),
            tcp_v4: cuts && offloads.tcp_v4(),
            tcp_v6: cuts && offloads.tcp_v6(),
            ecn: cuts && offloads.ecn(),
            by_header: true,
            limits: tx::limits(deal.llq.as_ref(), deal.max_frame),
            ..Capabilities::NONE
        }
    }

    pub(super) fn notices(&self, deal: &Deal) -> Vec<String> {
        let (name, mac) = (&self.place, deal.device.mac);
        let mut notices = vec![format!(
            "{name}: an ENA has no promiscuous mode, and its network delivers only frames for {mac} and takes only \
             frames from it; give the VM that address"
        )];
        if let Some(wish) = self.wishes.mac.filter(|wish| *wish != mac) {
            notices.push(format!(
                "{name}: the network interface has the address {mac}, which cannot be changed to {wish}; give the VM \
                 {mac}"
            ));
        }
        if deal.pairs < self.wishes.queue_pairs.get() {
            notices.push(format!(
                "{name}: {} queues each way are wanted and the device has {}; larger instances have more",
                self.wishes.queue_pairs, deal.pairs
            ));
        }
        notices
    }
}
