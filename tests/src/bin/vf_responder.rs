//! Answers ARP, neighbour discovery and echo requests through a VF: a proof of the driver without a relay.
//!
//! ```text
//! vf_responder 0000:01:10.0 --ip 10.0.0.9 --ip6 fd00::9 --seconds 30
//! ```
//!
//! It ends after that time, or when the file that `--stop` names exists. Several VFs are served in turn.
//! With `--twice` each is opened, started and closed once before; with `--by-group` by its group, whatever the kernel has.
//! Events and counters go to the standard output, one line each.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use models::answer::answer;
use pmd::frame::gather;
use pmd::vfio::Access;
use pmd::{
    Accepted, Address, Burst, Device, DeviceEvent, MacAddress, Queues, ReceiveQueue, Segment, Token,
    TransmitQueue, VfOptions,
};

const ROOM: usize = 16 * 1024;
const SERVICE: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_millis(100);

struct Options {
    addresses: Vec<Address>,
    ip: Ipv4Addr,
    ip6: Ipv6Addr,
    seconds: u64,
    stop: PathBuf,
    twice: bool,
    vfs: VfOptions,
}

type Failure = Box<dyn std::error::Error>;

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        addresses: Vec::new(),
        ip: Ipv4Addr::new(10, 0, 0, 9),
        ip6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9),
        seconds: 30,
        stop: PathBuf::from("/nonexistent"),
        twice: false,
        vfs: VfOptions::default(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--ip" => options.ip = value()?.parse()?,
            "--ip6" => options.ip6 = value()?.parse()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--twice" => options.twice = true,
            "--by-group" => options.vfs.access = Access::Group,
            "--token" => options.vfs.token = Some(value()?.parse()?),
            "--stop" => options.stop = value()?.into(),
            address => options.addresses.push(address.parse()?),
        }
    }
    if options.addresses.is_empty() {
        return Err(
            "which VF? vf_responder 0000:01:10.0 [--ip A] [--ip6 A] [--seconds N] [--stop FILE]".into()
        );
    }
    Ok(options)
}

struct Vf {
    device: Box<dyn Device>,
    queues: Option<Queues>,
    retry: Instant,
}

impl Vf {
    fn open(address: Address, options: &VfOptions) -> Result<Self, Failure> {
        let device = pmd::open_vf(address, options)?;
        println!("open {:?}", device.identity());
        Ok(Self { device, queues: None, retry: Instant::now() })
    }

    fn start(&mut self) {
        if self.queues.is_some() || Instant::now() < self.retry {
            return;
        }
        match self.device.start() {
            Ok(queues) => {
                println!("started {:?}", self.device.identity());
                self.queues = Some(queues);
            }
            Err(error) => {
                println!("not started: {error}");
                self.retry = Instant::now() + RETRY;
            }
        }
    }

    /// `false` when the device has left.
    fn service(&mut self) -> bool {
        for event in self.device.service() {
            println!("{}: {event:?}", self.device.identity().name);
            if matches!(event, DeviceEvent::ResetNeeded { .. } | DeviceEvent::Gone { .. })
                && let Some(queues) = self.queues.take()
            {
                self.device.stop(queues);
            }
            if matches!(event, DeviceEvent::Gone { .. }) {
                return false;
            }
        }
        true
    }

    fn poll(&mut self, options: &Options, burst: &mut Burst, scratch: &mut [Vec<u8>]) {
        let mac = self.device.identity().mac.unwrap_or(MacAddress([0; 6]));
        let Some(queues) = &mut self.queues else { return };
        let (Some(receive), Some(transmit)) = (queues.receive.first_mut(), queues.transmit.first_mut())
        else {
            return;
        };
        receive.receive(burst);
        if burst.is_empty() {
            return;
        }
        let mut answers = Burst::new();
        for ((frame, segments), room) in burst.frames().iter().zip(scratch) {
            room.resize(ROOM, 0);
            let len = gather(segments, room);
            // A solicitation grows into its advertisement.
            room.truncate(len.max(86));
            if let Some(len) = answer(room, mac, options.ip, options.ip6)
                && let Some(ptr) = NonNull::new(room.as_mut_ptr())
            {
                // SAFETY: `room` is not touched again until the answers are sent, which copies them.
                answers.push(unsafe { Segment::new(ptr, len as u32) }, Token(0));
            }
            receive.release(frame.token());
        }
        burst.clear();
        let mut sent = 0;
        let until = Instant::now() + RETRY;
        while sent < answers.len() && Instant::now() < until {
            if let Accepted::Copied(n) = transmit.transmit(answers.frames().skip(sent)) {
                sent += n;
            }
        }
    }
}

fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_env_filter("info,pmd=debug").with_ansi(false).init();
    let options = options()?;
    for address in options.addresses.iter().filter(|_| options.twice) {
        Vf::open(*address, &options.vfs)?.start();
    }
    let mut vfs = options
        .addresses
        .iter()
        .map(|address| Vf::open(*address, &options.vfs))
        .collect::<Result<Vec<_>, _>>()?;
    let mut burst = Burst::new();
    let mut scratch = vec![vec![0; ROOM]; pmd::frame::BURST_FRAMES];
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let mut next = Instant::now();
    while Instant::now() < end && !vfs.is_empty() {
        vfs.iter_mut().for_each(|vf| vf.poll(&options, &mut burst, &mut scratch));
        if Instant::now() >= next {
            next = Instant::now() + SERVICE;
            if options.stop.exists() {
                break;
            }
            vfs.iter_mut().for_each(Vf::start);
            vfs.retain_mut(Vf::service);
        }
    }
    for vf in &mut vfs {
        let statistics = vf.device.statistics();
        println!("{} {statistics:?}", vf.device.identity().name);
        if let Some(queues) = vf.queues.take() {
            vf.device.stop(queues);
        }
    }
    Ok(())
}
