//! Guests for measuring, on one thread that never sleeps: those that load a daemon, those that only are there, and one
//! that measures how long a single frame takes. `cargo xtask bench` starts it.
//!
//! ```text
//! bench_guest load DIR RELAYS BUSY WINDOW SIZE   guests on DIR/virtio-forwarder0.sock and so on, of which the first BUSY
//!                                                send WINDOW frames of SIZE bytes each, and then what comes back;
//!                                                prints `NANOSECONDS FRAMES` 20 times a second
//! bench_guest silent DIR RELAYS                  guests that never send
//! bench_guest probe SOCKET SECONDS GAP           one frame of 64 bytes at a time, GAP microseconds after the last one came
//!                                                back; prints `SAMPLES LOST P50 P99 MAX WAITED`, times in
//!                                                nanoseconds; WAITED: others had its CPU
//! bench_guest wake CPU SECONDS GAP               the same of a thread on CPU that sleeps, is woken, and says so: what of a
//!                                                first frame's time is the machine's
//! ```
//!
//! It says `ready` once the rings of all guests run.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use relay::driver::nic::{GuestNic, NicOptions};
use relay::driver::queue::Layout;
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_setaffinity};

const USAGE: &str = "bench_guest load DIR RELAYS BUSY WINDOW SIZE | silent DIR RELAYS | probe SOCKET SECONDS GAP | \
                     wake CPU SECONDS GAP";
/// How often the number of frames is printed.
const REPORT: Duration = Duration::from_millis(50);
/// A frame that takes longer than this is lost; a busy machine may keep a program from its CPU for a second.
const LOST: Duration = Duration::from_secs(10);
/// Round trips that are not counted, until caches and branch predictors know the way.
const WARM_UP: u64 = 200;
/// Virtqueue indices of the first pair.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["load", dir, relays, busy, window, size] => {
            load(dir, relays.parse()?, busy.parse()?, window.parse()?, size.parse()?)
        }
        ["silent", dir, relays] => {
            let guests = connect(dir, relays.parse()?, 0)?;
            println!("ready");
            loop {
                std::thread::sleep(Duration::from_secs(3600));
                std::hint::black_box(&guests);
            }
        }
        ["probe", socket, seconds, gap] => {
            probe(Path::new(socket), seconds.parse()?, Duration::from_micros(gap.parse()?))
        }
        ["wake", cpu, seconds, gap] => {
            wake(cpu.parse()?, seconds.parse()?, Duration::from_micros(gap.parse()?))
        }
        _ => Err(USAGE.into()),
    }
}

/// Guests on the first `relays` sockets of a directory, each with rings of at least `window` descriptors.
fn connect(dir: &str, relays: usize, window: u16) -> Result<Vec<GuestNic>, Box<dyn Error>> {
    let queue_size = (2 * window).next_power_of_two().max(256);
    let mut guests = Vec::new();
    for id in 0..relays {
        let socket = PathBuf::from(dir).join(format!("virtio-forwarder{id}.sock"));
        guests.push(GuestNic::connect(&socket, NicOptions { queue_size, ..NicOptions::default() })?);
    }
    Ok(guests)
}

fn load(dir: &str, relays: usize, busy: usize, window: u16, size: usize) -> Result<(), Box<dyn Error>> {
    let mut guests = connect(dir, relays, window)?;
    guests.truncate(relays);
    let (busy, _silent) = guests.split_at_mut(busy.min(relays));
    let mut loads: Vec<_> = busy.iter_mut().map(|nic| Load::start(nic, window, size)).collect();
    println!("ready");
    let start = Instant::now();
    let (mut frames, mut reported) = (0, start);
    loop {
        for _ in 0..64 {
            frames += loads.iter_mut().map(Load::step).sum::<u64>();
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            println!("{} {frames}", start.elapsed().as_nanos());
        }
    }
}

/// A guest that sends again what came back. Frames are written once: after that only rings are moved on, so that it
/// costs less than the daemon that it measures.
struct Load<'a> {
    nic: &'a mut GuestNic,
    /// Heads of chains that can be sent again.
    free: Vec<u16>,
    /// Frames that came back and were not sent again yet.
    owed: usize,
}

impl<'a> Load<'a> {
    fn start(nic: &'a mut GuestNic, window: u16, size: usize) -> Self {
        nic.set_polling(true);
        let mut frame = vec![0; size];
        // Experimental EtherType, from and to addresses of our own.
        frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
        for _ in 0..window {
            nic.send(&frame);
        }
        nic.flush();
        Self { nic, free: Vec::with_capacity(usize::from(window)), owed: 0 }
    }

    /// Sends again what came back; returns how many frames came back.
    fn step(&mut self) -> u64 {
        let before = self.owed;
        let (Layout::Split(ring), ram) = self.nic.by_hand(RECEIVE) else { return 0 };
        while let Some((head, _)) = ring.pop(ram) {
            ring.push(ram, head as u16);
            self.owed += 1;
        }
        let back = self.owed - before;
        if back > 0 {
            ring.publish(ram);
        }
        if self.owed == 0 {
            return 0;
        }
        let (Layout::Split(ring), ram) = self.nic.by_hand(TRANSMIT) else { return 0 };
        while let Some((head, _)) = ring.pop(ram) {
            self.free.push(head as u16);
        }
        let sent = self.owed.min(self.free.len());
        for head in self.free.drain(self.free.len() - sent..) {
            ring.push(ram, head);
        }
        if sent > 0 {
            self.owed -= sent;
            self.nic.flush();
        }
        back as u64
    }
}

fn probe(socket: &Path, seconds: f64, gap: Duration) -> Result<(), Box<dyn Error>> {
    let mut nic = GuestNic::connect(socket, NicOptions::default())?;
    nic.set_polling(true);
    println!("ready");
    let frame = [0x02; 64];
    sample(seconds, gap, || {
        let start = Instant::now();
        nic.send(&frame);
        nic.flush();
        let mut back = 0;
        while back == 0 && start.elapsed() < LOST {
            back = nic.receive(1, |_| ());
        }
        let time = (back > 0).then(|| start.elapsed());
        nic.take_sent();
        time
    })
}

fn wake(cpu: usize, seconds: f64, gap: Duration) -> Result<(), Box<dyn Error>> {
    let bell = Arc::new(eventfd(0, EventfdFlags::empty())?);
    let woken = Arc::new(AtomicU64::new(0));
    let (its_bell, its_woken) = (Arc::clone(&bell), Arc::clone(&woken));
    std::thread::spawn(move || {
        let mut cpus = CpuSet::new();
        cpus.set(cpu);
        let pinned = sched_setaffinity(None, &cpus);
        while pinned.is_ok() && rustix::io::read(&its_bell, &mut [0; 8]).is_ok() {
            its_woken.fetch_add(1, Ordering::Release);
        }
    });
    println!("ready");
    sample(seconds, gap, || {
        let (before, start) = (woken.load(Ordering::Acquire), Instant::now());
        rustix::io::write(&bell, &1_u64.to_ne_bytes()).ok()?;
        while woken.load(Ordering::Acquire) == before {
            if start.elapsed() >= LOST {
                return None;
            }
        }
        Some(start.elapsed())
    })
}

/// Has `once` done again and again, and prints how long it took; `None` counts as lost.
fn sample(
    seconds: f64,
    gap: Duration,
    mut once: impl FnMut() -> Option<Duration>,
) -> Result<(), Box<dyn Error>> {
    let mut times = Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3)?;
    let (mut done, mut lost, mut random) = (0_u64, 0_u64, 0x9e37_79b9_u64);
    // The rest, when the gap is long, must not make it endless.
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < end {
        if !gap.is_zero() {
            // Up to half as long again, so that no timer of the daemon keeps step with it.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            std::thread::sleep(gap + gap.mul_f64((random >> 40) as f64 / (1 << 25) as f64));
        }
        done += 1;
        match once() {
            None => lost += 1,
            Some(time) if done > WARM_UP || !gap.is_zero() => times.record(time.as_nanos() as u64)?,
            Some(_) => {}
        }
    }
    let at = |quantile| times.value_at_quantile(quantile);
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let waited = schedule.split_whitespace().nth(1).unwrap_or_default();
    println!("{} {lost} {} {} {} {waited}", times.len(), at(0.5), at(0.99), times.max());
    Ok(())
}
