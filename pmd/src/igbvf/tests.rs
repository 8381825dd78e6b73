//! The slow side against the register double.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::double::{Double, IMPATIENT};
use super::*;
use crate::device::Device;
use crate::intel::family::{ENABLE as DCTL_ENABLE, ring};
use crate::intel::mailbox::bit;
use crate::intel::message::CLEAR_TO_SEND;
use crate::mac::MacAddress;
use crate::memory::dma::tests::FakeMap;
use crate::memory::{DmaAccess, DmaMap};

const RXDCTL: u32 = RINGS.receive_at(0, ring::CONTROL);
const RDT: u32 = RINGS.receive_at(0, ring::TAIL);

#[derive(Debug)]
struct Function {
    double: Arc<Double>,
    map: FakeMap,
    removal: AtomicBool,
    resets: AtomicUsize,
    master: AtomicBool,
    /// It cannot be reset.
    stubborn: AtomicBool,
    /// Another device is in its address space.
    shares: AtomicBool,
    /// Mappings that can still be made.
    maps_left: AtomicUsize,
    /// Mappings that went while the device could use them.
    unmapped_while_on: AtomicUsize,
}

impl DmaMap for Function {
    unsafe fn map(
        &self,
        ptr: *mut u8,
        len: usize,
        align: usize,
        access: DmaAccess,
    ) -> Result<u64, DeviceError> {
        if self.maps_left.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(DeviceError::Failed("locked memory".to_owned()));
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.map.map(ptr, len, align, access) }
    }

    fn unmap(&self, iova: u64, len: usize) {
        let on = self.double.peek(RXDCTL) & DCTL_ENABLE != 0;
        if on && self.master.load(Ordering::Relaxed) {
            self.unmapped_while_on.fetch_add(1, Ordering::Relaxed);
        }
        self.map.unmap(iova, len);
    }
}

impl PciFunction for Function {
    fn reset(&self) -> io::Result<()> {
        self.resets.fetch_add(1, Ordering::Relaxed);
        if self.stubborn.load(Ordering::Relaxed) { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        self.master.store(on, Ordering::Relaxed);
        Ok(())
    }

    fn bar(
        self: Arc<Self>,
        _index: u8,
        _start: u64,
        _len: usize,
        _caching: Caching,
    ) -> Result<Arc<dyn Registers>, DeviceError> {
        Ok(Arc::clone(&self.double) as Arc<dyn Registers>)
    }

    fn shares_address_space(&self) -> bool {
        self.shares.load(Ordering::Relaxed)
    }

    fn removal_requested(&self) -> bool {
        self.removal.load(Ordering::Relaxed)
    }
}

fn open(double: &Arc<Double>) -> Result<(Vf<Igbvf>, Arc<Function>), DeviceError> {
    let function = Arc::new(Function {
        double: Arc::clone(double),
        map: FakeMap::default(),
        removal: AtomicBool::default(),
        resets: AtomicUsize::default(),
        master: AtomicBool::default(),
        stubborn: AtomicBool::default(),
        shares: AtomicBool::default(),
        maps_left: AtomicUsize::new(1 << 40),
        unmapped_while_on: AtomicUsize::default(),
    });
    let place = Place { address: "0000:01:10.0".parse().unwrap(), pf: Some(("eth2".to_owned(), 3)) };
    let setup =
        Setup { place, ids: IDS_82576, wishes: Wishes::default(), patience: IMPATIENT, hashed_groups: false };
    let device = Igbvf::open(Arc::clone(&function) as Arc<dyn PciFunction>, setup)?;
    Ok((device, function))
}

fn mapped(function: &Function) -> usize {
    function.map.mapped.lock().unwrap().len()
}

#[test]
fn it_opens_starts_and_stops() {
    let double = Double::new();
    let (mut device, function) = open(&double).unwrap();
    let identity = device.identity();
    assert_eq!((identity.mac, identity.max_frame, identity.filters_by_mac), (Some(double.mac()), 9724, true));
    let queues = device.start().unwrap();
    assert_eq!((queues.receive.len(), queues.transmit.len(), mapped(&function)), (1, 1, 1));
    assert!(device.start().is_err());
    assert_eq!(double.read(RINGS.receive_at(0, SRRCTL)), 0x8200_0002);
    assert_eq!(double.read(RXDCTL) & (DCTL_ENABLE | 0x1f << 16), DCTL_ENABLE | 1 << 16);
    assert_eq!(double.read(RDT), 1023);
    device.stop(queues);
    assert_eq!((mapped(&function), double.read(RXDCTL) & DCTL_ENABLE), (0, 0));
    let queues = device.start().unwrap();
    device.stop(queues);
}

#[test]
fn the_first_look_tells_link_and_refusals() {
    let double = Double::new();
    let (mut device, _) = open(&double).unwrap();
    let events = device.service();
    let notice = events.iter().find_map(|event| match event {
        DeviceEvent::Notice(text) => Some(text),
        _ => None,
    });
    assert!(notice.unwrap().contains("ip link set eth2 vf 3 trust on"), "{events:?}");
    assert!(events.contains(&DeviceEvent::Link(Link::Up { speed: Some(1000) })));
    assert!(device.service().is_empty());
    double.poke(STATUS, 0);
    assert_eq!(device.service(), [DeviceEvent::Link(Link::Down)]);
}

#[test]
fn a_promiscuous_vf_filters_nothing() {
    let double = Double::new();
    double.set(|pf| pf.unicast_promiscuous = true);
    let (mut device, _) = open(&double).unwrap();
    assert!(!device.identity().filters_by_mac);
    assert!(!device.service().iter().any(|event| matches!(event, DeviceEvent::Notice(_))));
}

#[test]
fn a_reset_of_the_pf_is_told_once_and_start_fails_until_it_is_back() {
    let double = Double::new();
    let (mut device, _) = open(&double).unwrap();
    let queues = device.start().unwrap();
    device.service();
    double.set(|pf| pf.control |= bit::RSTI);
    let events = device.service();
    assert!(matches!(events[0], DeviceEvent::ResetNeeded { .. }), "{events:?}");
    assert_eq!(events[1..], [DeviceEvent::Link(Link::Down)]);
    assert!(device.service().is_empty());
    device.stop(queues);
    let error = device.start().unwrap_err();
    assert!(matches!(&error, DeviceError::NotReady(text) if text.contains("ip link set eth2 up")), "{error}");
    double.set(|pf| {
        pf.control = bit::RSTD;
        pf.mac = MacAddress([0x52, 0x54, 0, 0, 0, 0x99]);
    });
    let queues = device.start().unwrap();
    let events = device.service();
    assert!(events.contains(&DeviceEvent::MacChanged(double.mac())), "{events:?}");
    assert!(events.contains(&DeviceEvent::Link(Link::Up { speed: Some(1000) })));
    assert!(!events.iter().any(|event| matches!(event, DeviceEvent::ResetNeeded { .. })));
    device.stop(queues);
}

#[test]
fn a_ping_without_clear_to_send_is_a_reset_too() {
    let double = Double::new();
    let (mut device, _) = open(&double).unwrap();
    let queues = device.start().unwrap();
    device.service();
    double.say(0x0100 | CLEAR_TO_SEND);
    assert!(device.service().is_empty());
    double.say(0x0100);
    assert!(matches!(device.service()[0], DeviceEvent::ResetNeeded { .. }));
    device.stop(queues);
}

#[test]
fn a_device_that_is_gone_is_told_once_and_can_be_stopped() {
    let double = Double::new();
    let (mut device, function) = open(&double).unwrap();
    let queues = device.start().unwrap();
    double.set(|pf| pf.gone = true);
    assert!(device.service().iter().any(|event| matches!(event, DeviceEvent::Gone { .. })));
    assert!(!device.service().iter().any(|event| matches!(event, DeviceEvent::Gone { .. })));
    device.stop(queues);
    assert_eq!((mapped(&function), function.resets.load(Ordering::Relaxed)), (0, 1));
    assert!(matches!(device.start(), Err(DeviceError::NotFound(_))));
    drop(device);
    assert_eq!(function.resets.load(Ordering::Relaxed), 1, "what has left is reset once, in case it has not");
}

#[test]
fn a_wish_to_remove_the_vf_is_heard() {
    let double = Double::new();
    let (mut device, function) = open(&double).unwrap();
    function.removal.store(true, Ordering::Relaxed);
    assert!(device.service().iter().any(|event| matches!(event, DeviceEvent::Gone { .. })));
}

#[test]
fn an_open_without_pf_says_what_to_do() {
    let double = Double::new();
    double.set(|pf| pf.silent = true);
    let error = open(&double).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("ip link set eth2 up"), "{error}");
}

#[test]
fn dropping_a_running_device_quiets_it() {
    let double = Double::new();
    let (mut device, function) = open(&double).unwrap();
    let queues = device.start().unwrap();
    drop(device);
    assert_eq!(double.read(RXDCTL) & DCTL_ENABLE, 0);
    assert_eq!(mapped(&function), 1);
    drop(queues);
    assert_eq!(mapped(&function), 0);
}

#[test]
fn what_cannot_be_quieted_is_kept_from_the_bus() {
    let double = Double::new();
    let (mut device, function) = open(&double).unwrap();
    let queues = device.start().unwrap();
    assert!(function.master.load(Ordering::Relaxed));
    function.stubborn.store(true, Ordering::Relaxed);
    double.set(|pf| pf.gone = true);
    device.stop(queues);
    assert!(!function.master.load(Ordering::Relaxed));
}

fn open_with(double: &Arc<Double>, ids: Ids, wishes: Wishes) -> Vf<Igbvf> {
    let place = Place { address: "0000:01:10.0".parse().unwrap(), pf: Some(("eth2".to_owned(), 3)) };
    let setup = Setup { place, ids, wishes, patience: IMPATIENT, hashed_groups: false };
    let function = Arc::new(Function {
        double: Arc::clone(double),
        map: FakeMap::default(),
        removal: AtomicBool::default(),
        resets: AtomicUsize::default(),
        master: AtomicBool::default(),
        stubborn: AtomicBool::default(),
        shares: AtomicBool::default(),
        maps_left: AtomicUsize::new(1 << 40),
        unmapped_while_on: AtomicUsize::default(),
    });
    Igbvf::open(function as Arc<dyn PciFunction>, setup).unwrap()
}

fn notice(device: &mut Vf<Igbvf>, text: &str) -> bool {
    device.service().iter().any(|event| matches!(event, DeviceEvent::Notice(notice) if notice.contains(text)))
}

#[test]
fn the_82576_has_two_queue_pairs_and_the_i350_one() {
    let double = Double::new();
    double.set(|pf| pf.unicast_promiscuous = true);
    let wishes = |pairs: u16| Wishes { queue_pairs: pairs.try_into().unwrap(), ..Wishes::default() };
    for (ids, wished, got, told) in [
        (IDS_82576, 1, 1, false),
        (IDS_82576, 2, 2, false),
        (IDS_82576, 3, 2, true),
        (IDS_I350, 1, 1, false),
        (IDS_I350, 2, 1, true),
    ] {
        let mut device = open_with(&double, ids, wishes(wished));
        let queues = device.start().unwrap();
        assert_eq!((queues.receive.len(), queues.transmit.len()), (got, got), "{ids} {wished}");
        assert_eq!(notice(&mut device, "queue pairs wished for"), told, "{ids} {wished}");
        assert_eq!(double.peek(RXDCTL + 0x100) & DCTL_ENABLE != 0, got == 2);
        device.stop(queues);
        assert_eq!(double.peek(RXDCTL + 0x100) & DCTL_ENABLE, 0);
    }
}

#[test]
fn refused_wishes_are_told_with_their_remedy() {
    let double = Double::new();
    double.set(|pf| (pf.keeps_mac, pf.refused_vlan) = (true, 7));
    let wishes = Wishes { mac: Some(MacAddress([2, 0, 0, 0, 0, 1])), vlans: vec![6, 7], ..Wishes::default() };
    let mut device = open_with(&double, IDS_82576, wishes.clone());
    assert_eq!(device.identity().mac, Some(double.mac()));
    assert!(notice(&mut device, "ip link set eth2 vf 3 mac 02:00:00:00:00:01"));
    assert!(notice(&mut open_with(&double, IDS_82576, wishes), "VLANs [7]"));
}

#[test]
fn a_start_that_fails_half_way_keeps_its_memory_until_the_device_is_quiet() {
    let double = Double::new();
    let (_, function) = open(&double).unwrap();
    let place = Place { address: "0000:01:10.0".parse().unwrap(), pf: None };
    let wishes = Wishes { queue_pairs: std::num::NonZero::new(2).unwrap(), ..Wishes::default() };
    let setup = Setup { place, ids: IDS_82576, wishes, patience: IMPATIENT, hashed_groups: false };
    let mut vf = Igbvf::open(Arc::clone(&function) as Arc<dyn PciFunction>, setup).unwrap();
    function.maps_left.store(1, Ordering::Relaxed);
    assert!(vf.start().is_err());
    assert_eq!(function.unmapped_while_on.load(Ordering::Relaxed), 0);
    assert!(function.map.mapped.lock().unwrap().is_empty(), "nothing is left either");
}
