//! Sends numbered frames through a VF to an interface of the kernel that is at the other end of its wire, and then the other
//! way, and holds every byte against what was sent: a proof of the driver without a relay.
//!
//! ```text
//! vf_numbered 0000:01:10.0 vf1 --frames 100000 --longest 1514 --queue-pairs 2
//! ```
//!
//! Each frame must arrive once; those of a queue in order. Frames go out by all queues in turn. As many are on their way as
//! the smallest ring holds for sure, so none may be lost. The status is 1 where something is wrong.

use std::num::NonZero;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use models::exam::{length, numbered};
use pmd::frame::{BURST_FRAMES, gather};
use pmd::software::packet::Packet;
use pmd::{
    Accepted, Address, Burst, Completions, Device, DeviceEvent, MacAddress, Queues, ReceiveQueue, Segment,
    Token, TransmitQueue, VfOptions,
};

type Failure = Box<dyn std::error::Error>;

/// Frames on their way: with the longest ones they are fewer than 256 buffers of 2 KiB.
const WINDOW: u32 = 32;
/// In which a frame arrives, or is taken by a queue that is full; emulation is slow.
const DEADLINE: Duration = Duration::from_secs(20);
/// Frames of the first seconds, until the link is up, carry this number.
const GREETING: u32 = u32::MAX;

struct Options {
    vf: Address,
    far: String,
    frames: u32,
    longest: usize,
    queue_pairs: NonZero<u16>,
}

fn options() -> Result<Options, Failure> {
    let usage = "usage: vf_numbered VF INTERFACE [--frames N] [--longest BYTES] [--queue-pairs N]";
    let mut arguments = std::env::args().skip(1);
    let (Some(vf), Some(far)) = (arguments.next(), arguments.next()) else { return Err(usage.into()) };
    let mut options =
        Options { vf: vf.parse()?, far, frames: 100_000, longest: 1514, queue_pairs: NonZero::<u16>::MIN };
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or(usage)?;
        match argument.as_str() {
            "--frames" => options.frames = value.parse()?,
            "--longest" => options.longest = value.parse()?,
            "--queue-pairs" => options.queue_pairs = value.parse()?,
            _ => return Err(usage.into()),
        }
    }
    Ok(options)
}

/// A device that runs.
struct End {
    device: Box<dyn Device>,
    queues: Queues,
    mac: MacAddress,
    buffer: Vec<u8>,
}

impl End {
    fn start(mut device: Box<dyn Device>) -> Result<Self, Failure> {
        let queues = device.start()?;
        let mac = device.identity().mac.ok_or("it has no address")?;
        println!("started {:?}", device.identity());
        Ok(Self { device, queues, mac, buffer: vec![0; 1 << 17] })
    }

    /// Sends frames through one queue; all of them are taken.
    fn send(&mut self, queue: usize, frames: &mut [Vec<u8>]) -> Result<(), Failure> {
        let mut burst = Burst::new();
        for frame in frames {
            let len = frame.len() as u32;
            let ptr = NonNull::new(frame.as_mut_ptr()).ok_or("no frame")?;
            // SAFETY: the frame outlives the burst, nobody touches it meanwhile, and a queue copies what it is given.
            if !burst.push(unsafe { Segment::new(ptr, len) }, Token(0)) {
                return Err("a burst is full".into());
            }
        }
        let queue = self.queues.transmit.get_mut(queue).ok_or("no such queue")?;
        let (mut sent, deadline) = (0, Instant::now() + DEADLINE);
        while sent < burst.len() {
            queue.reclaim(&mut Completions::new());
            match queue.transmit(burst.frames().skip(sent)) {
                Accepted::Copied(n) => sent += n,
                other => return Err(format!("frames are not sent: {other:?}").into()),
            }
            if Instant::now() > deadline {
                return Err("the queue stays full".into());
            }
        }
        Ok(())
    }

    /// Shows `each` numbered frame that is for this end, and on which queue it came.
    fn receive(&mut self, mut each: impl FnMut(usize, &[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut burst = Burst::new();
        for (number, queue) in self.queues.receive.iter_mut().enumerate() {
            queue.receive(&mut burst);
            let mut result = Ok(());
            let mut tokens = [Token(0); BURST_FRAMES];
            let count = burst.len();
            for (token, (frame, segments)) in tokens.iter_mut().zip(burst.frames().iter()) {
                *token = frame.token();
                let len = gather(segments, &mut self.buffer);
                let bytes = &self.buffer[..len];
                if result.is_ok()
                    && bytes.starts_with(&self.mac.0)
                    && bytes.get(12..14) == Some(&[0x88, 0xb5])
                {
                    result = each(number, bytes);
                }
            }
            burst.clear();
            tokens[..count].iter().for_each(|token| queue.release(*token));
            result?;
        }
        Ok(())
    }

    fn service(&mut self) -> Result<(), Failure> {
        for event in self.device.service() {
            println!("{}: {event:?}", self.device.identity().name);
            if matches!(event, DeviceEvent::ResetNeeded { .. } | DeviceEvent::Gone { .. }) {
                return Err("the device has stopped".into());
            }
        }
        Ok(())
    }

    fn stop(mut self) {
        let statistics = self.device.statistics();
        println!("{} {statistics:?}", self.device.identity().name);
        self.device.stop(self.queues);
    }
}

/// Numbered frames, made once for each value that their payload can have.
struct Frames {
    payloads: Vec<Vec<u8>>,
    longest: usize,
}

impl Frames {
    fn new(longest: usize) -> Self {
        Self { payloads: (0..256).map(|number| numbered(number, longest)).collect(), longest }
    }

    fn frame(&self, number: u32, from: MacAddress, to: MacAddress) -> Vec<u8> {
        let len = if number == GREETING { 60 } else { length(number, self.longest) };
        let mut frame = self.payloads[number as usize % 256][..len].to_vec();
        frame[..6].copy_from_slice(&to.0);
        frame[6..12].copy_from_slice(&from.0);
        frame[14..18].copy_from_slice(&number.to_be_bytes());
        frame
    }
}

/// The number of a frame.
fn number_of(frame: &[u8]) -> u32 {
    frame.get(14..18).map_or(0, |bytes| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

/// Sends until something arrives: the link may take its time, and so may the kernel.
fn greet(frames: &Frames, from: &mut End, to: &mut End) -> Result<(), Failure> {
    let deadline = Instant::now() + DEADLINE;
    let mut heard = false;
    while !heard {
        from.send(0, &mut [frames.frame(GREETING, from.mac, to.mac)])?;
        let look = Instant::now() + Duration::from_millis(50);
        while !heard && Instant::now() < look {
            to.receive(|_, bytes| {
                heard |= number_of(bytes) == GREETING;
                Ok(())
            })?;
        }
        from.service()?;
        to.service()?;
        if Instant::now() > deadline {
            return Err("nothing arrives".into());
        }
    }
    Ok(())
}

/// Frames `0..count` from one end to the other.
fn pass(frames: &Frames, count: u32, from: &mut End, to: &mut End) -> Result<(), Failure> {
    greet(frames, from, to)?;
    let queues = from.queues.transmit.len() as u32;
    let (from_mac, to_mac) = (from.mac, to.mac);
    // The next one of each queue by which frames leave; a queue's numbers have one remainder.
    let mut next: Vec<u32> = (0..queues).collect();
    let mut arrived_by = vec![0u32; to.queues.receive.len()];
    let (mut sent, mut received) = (0, 0);
    let start = Instant::now();
    let mut deadline = start + DEADLINE;
    let mut serviced = start;
    while received < count {
        let more = (WINDOW - (sent - received)).min(count - sent);
        for queue in 0..queues {
            let numbers = (sent..sent + more).filter(|number| number % queues == queue);
            let mut burst: Vec<_> = numbers.map(|number| frames.frame(number, from_mac, to_mac)).collect();
            for part in burst.chunks_mut(BURST_FRAMES) {
                from.send(queue as usize, part)?;
            }
        }
        sent += more;
        let before = received;
        to.receive(|queue, bytes| {
            let number = number_of(bytes);
            if number == GREETING {
                return Ok(());
            }
            let next = &mut next[(number % queues) as usize];
            if number != *next {
                return Err(format!("frame {number} in the place of {next}").into());
            }
            if bytes != frames.frame(number, from_mac, to_mac) {
                return Err(format!("frame {number} is not as it was sent: {} bytes", bytes.len()).into());
            }
            *next += queues;
            received += 1;
            arrived_by[queue] += 1;
            Ok(())
        })?;
        let now = Instant::now();
        if received > before {
            deadline = now + DEADLINE;
        } else if now > deadline {
            return Err(format!("after {received} frames none arrives, of {sent} that were sent").into());
        }
        if now > serviced + Duration::from_millis(100) {
            serviced = now;
            from.service()?;
            to.service()?;
        }
    }
    let time = start.elapsed();
    println!(
        "{} to {}: {count} frames of 60 to {} bytes, {:.1} s, {arrived_by:?} by queue",
        from.device.identity().name,
        to.device.identity().name,
        frames.longest,
        time.as_secs_f64()
    );
    Ok(())
}

fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_env_filter("info,pmd=debug").with_ansi(false).init();
    let options = options()?;
    let mut vfs = VfOptions::default();
    vfs.wishes.queue_pairs = options.queue_pairs;
    let mut vf = End::start(pmd::open_vf(options.vf, &vfs)?)?;
    let mut far = End::start(Box::new(Packet::open(&options.far)?))?;
    let frames = Frames::new(options.longest);
    let there = pass(&frames, options.frames, &mut vf, &mut far);
    let back = there.and_then(|()| pass(&frames, options.frames, &mut far, &mut vf));
    vf.stop();
    far.stop();
    back
}
