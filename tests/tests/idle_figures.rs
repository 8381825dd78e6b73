//! Figures of workers that idle, and of a busy relay beside quiet ones. Nothing here fails on a slow machine: the figures are
//! printed.
//!
//! ```text
//! cargo test --release -p forwarder-tests --test idle_figures -- --ignored --nocapture --test-threads 1
//! ```

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use forwarder::worker::{Figures, Idle};
use forwarder_tests::frames::frame;
use forwarder_tests::scene::{RECEIVE, TRANSMIT, split};
use forwarder_tests::stand::Stand;
use forwarder_tests::wait::within;
use relay::driver::nic::{GuestNic, NicOptions};
use relay::ring::event::need_event;

const RELAYS: usize = 64;

fn cable(relays: usize, idle: Idle) -> Stand {
    let stand = Stand::with_idle(relays as u32, idle);
    (0..relays).for_each(|id| stand.loopback(id));
    stand
}

/// Times of round trips in µs, sorted, each after a pause in which the worker has nothing to do.
fn round_trips(idle: Idle) -> Vec<f64> {
    let stand = cable(1, idle);
    let mut nic = stand.connect(0, NicOptions { event_idx: true, ..NicOptions::default() }).unwrap();
    nic.set_polling(true);
    let mut times: Vec<f64> = (0..3000)
        .map(|number| {
            std::thread::sleep(Duration::from_millis(1));
            nic.take_sent();
            let start = Instant::now();
            assert!(nic.send(&frame(number)));
            nic.flush();
            while nic.receive(1, |_| ()) == 0 {
                std::hint::spin_loop();
            }
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

#[test]
#[ignore = "prints figures"]
fn first_frame_after_idle() {
    for _ in 0..3 {
        for (name, idle) in [("poll", Idle::Poll), ("adaptive", Idle::default())] {
            let times = round_trips(idle);
            let at = |share: f64| times[(times.len() as f64 * share) as usize];
            println!("{name:>9}: p50 {:.1} µs, p90 {:.1}, p99 {:.1}", at(0.5), at(0.9), at(0.99));
        }
    }
}

/// A guest that keeps its rings full without looking at a byte, so that the worker is what limits it.
struct Load(GuestNic);

impl Load {
    fn new(stand: &Stand, relay: usize) -> Self {
        let mut nic = stand.connect(relay, NicOptions { event_idx: true, ..NicOptions::default() }).unwrap();
        nic.set_polling(true);
        while nic.send(&frame(0)) {}
        nic.flush();
        Self(nic)
    }

    fn turn(&mut self) {
        for index in [TRANSMIT, RECEIVE] {
            let (ring, ram) = split(&mut self.0, index);
            let before = ring.next_available;
            while let Some((head, _)) = ring.pop(ram) {
                ring.push(ram, head as u16);
            }
            if ring.next_available == before {
                continue;
            }
            ring.publish(ram);
            if need_event(ring.available_event(ram), ring.next_available, before) {
                self.0.kicks()[usize::from(index == TRANSMIT)].write(1).unwrap();
            }
        }
    }
}

/// What a worker did meanwhile.
fn over(stand: &Stand, time: Duration, mut turn: impl FnMut()) -> (f64, Figures) {
    let (before, start) = (stand.figures(), Instant::now());
    while start.elapsed() < time {
        (0..64).for_each(|_| turn());
    }
    let (after, elapsed) = (stand.figures(), start.elapsed().as_secs_f64());
    let frames = after.frames - before.frames;
    let figures = Figures {
        frames,
        busy_ticks: after.busy_ticks - before.busy_ticks,
        ticks: after.ticks - before.ticks,
        passes: after.passes - before.passes,
        empty_passes: after.empty_passes - before.empty_passes,
        sleeps: after.sleeps - before.sleeps,
    };
    (frames as f64 / elapsed / 1e6, figures)
}

fn print(name: &str, (rate, figures): &(f64, Figures)) {
    let Figures { ticks, passes, empty_passes, busy_ticks, frames, sleeps } = figures;
    println!(
        "{name:>24}: {rate:6.2} M frames/s, {:5.1} busy cycles and {:5.1} cycles a frame, {:4.1} % empty polls, {sleeps} sleeps",
        *busy_ticks as f64 / *frames as f64,
        *ticks as f64 / *frames as f64,
        *empty_passes as f64 / *passes as f64 * 1e2,
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "prints figures"]
fn one_busy_relay_beside_quiet_ones() {
    const TIME: Duration = Duration::from_millis(500);
    for (name, idle) in [("adaptive", Idle::default()), ("poll", Idle::Poll)] {
        let mut ratios = [const { Vec::new() }; 2];
        for _ in 0..7 {
            let alone = {
                let stand = cable(1, idle);
                let mut load = Load::new(&stand, 0);
                over(&stand, TIME, || load.turn())
            };
            let beside = {
                let stand = cable(RELAYS, idle);
                let quiet: Vec<_> =
                    (1..RELAYS).map(|id| stand.connect(id, NicOptions::default()).unwrap()).collect();
                let mut load = Load::new(&stand, 0);
                let result = over(&stand, TIME, || load.turn());
                drop(quiet);
                result
            };
            let all = {
                let stand = cable(RELAYS, idle);
                let mut loads: Vec<_> = (0..RELAYS).map(|id| Load::new(&stand, id)).collect();
                over(&stand, TIME, || loads.iter_mut().for_each(Load::turn))
            };
            print("alone", &alone);
            print("beside 63 quiet ones", &beside);
            print("64 busy ones", &all);
            ratios[0].push(beside.0 / alone.0);
            ratios[1].push(all.0 / alone.0);
        }
        let [beside, all] = ratios.map(median);
        println!("{name}: beside 63 quiet ones {beside:.3} of the rate alone, 64 busy ones {all:.3}");
    }
}

#[test]
#[ignore = "prints figures"]
fn cpu_of_silent_guests() {
    use rustix::time::{ClockId, clock_gettime};
    const TIME: Duration = Duration::from_secs(5);
    let stand = cable(RELAYS, Idle::default());
    let nics: Vec<_> = (0..RELAYS).map(|id| stand.connect(id, NicOptions::default()).unwrap()).collect();
    assert!(within(Duration::from_secs(10), || stand.figures().sleeps > 0));
    let (before, cpu) = (stand.figures(), clock_gettime(ClockId::ProcessCPUTime));
    std::thread::sleep(TIME);
    let used = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime) - cpu).unwrap();
    let share = used.as_secs_f64() / TIME.as_secs_f64() * 1e2;
    println!("64 silent guests: {share:.3} % of a CPU, {} sleeps", stand.figures().sleeps - before.sleeps);
    drop(nics);
}
