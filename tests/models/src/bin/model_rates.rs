//! Measures every VF driver against the model of its device: `model_rates ROUNDS SECONDS` prints one line for each round,
//! driver and size: `rate DRIVER SIZE FRAMES_A_SECOND CYCLES READS WRITES`, the last three for one frame out and back.

use std::process::ExitCode;
use std::time::Duration;

use models::drivers::DRIVERS;

/// Bytes of the frames.
const SIZES: [usize; 2] = [64, 1514];

fn main() -> ExitCode {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse::<f64>());
    let (Some(Ok(rounds)), Some(Ok(seconds))) = (numbers.next(), numbers.next()) else {
        eprintln!("model_rates ROUNDS SECONDS");
        return ExitCode::from(2);
    };
    for _ in 0..rounds as usize {
        for (name, open) in DRIVERS {
            for size in SIZES {
                let rate = open(size).rate(Duration::from_secs_f64(seconds));
                let (reads, writes) = rate.accesses;
                println!("rate {name} {size} {:.0} {:.1} {reads:.4} {writes:.4}", rate.frames, rate.ticks);
            }
        }
    }
    ExitCode::SUCCESS
}
