//! Running a set and telling how it went.

use std::time::{Duration, Instant};

use crate::Context;
use crate::sets::Set;

/// How a set went.
pub struct Outcome {
    set: &'static str,
    budget: Duration,
    took: Duration,
    /// What is wrong; empty when all is well.
    pub failures: Vec<String>,
    logs: String,
}

/// Runs a set; an error in running it is a failure of the set, and the next one is run all the same.
pub fn run_set(context: &Context, set: &Set) -> Outcome {
    println!("== {}: {}", set.name, set.about);
    let start = Instant::now();
    let failures = (set.run)(context).unwrap_or_else(|error| vec![format!("{error:#}")]);
    for failure in &failures {
        println!("   FAILED {failure}");
    }
    let logs = context.logs(set.name).display().to_string();
    Outcome { set: set.name, budget: set.budget, took: start.elapsed(), failures, logs }
}

/// The table at the end. Budgets are aims, not verdicts: a set that takes longer is marked, and good all the same.
pub fn print_table(outcomes: &[Outcome]) {
    println!("\n{:<16} {:>8} {:>8}  result", "set", "seconds", "budget");
    for outcome in outcomes {
        let result = match outcome.failures.len() {
            0 if outcome.took > outcome.budget => "ok, over its budget".to_owned(),
            0 => "ok".to_owned(),
            count => format!("FAILED ({count}), logs: {}", outcome.logs),
        };
        println!(
            "{:<16} {:>8.0} {:>8}  {result}",
            outcome.set,
            outcome.took.as_secs_f64(),
            outcome.budget.as_secs()
        );
    }
}
