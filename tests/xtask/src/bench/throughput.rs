//! Loop and VM to VM: our daemon and each testpmd, all with a generator of the same kind.

use anyhow::{Result, ensure};

use super::cells::{cycles_target, rate_target};
use super::contender::{Contender, Forwarder, Generator};
use super::load::Load;
use super::results::Measure;
use super::stage::{FORWARDER_CPU, GUEST_CPU, OURS, Stage, loopbacks, sides};
use super::testpmd::{IN_FLIGHT, Testpmd};

/// What is between guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// One guest gets back what it sends.
    Loop,
    /// Two guests get what the other one sends.
    VmToVm,
}

/// Frames a second and cycles of a frame.
pub fn measure(stage: &Stage, wiring: Wiring, load: &Load) -> Result<Vec<Measure>> {
    let mut contenders = vec![ours(stage, wiring, load)?];
    for (n, build) in stage.builds.iter().enumerate() {
        let folder = stage.run.join(format!("testpmd{n}"));
        std::fs::create_dir_all(&folder)?;
        let sockets: Vec<_> =
            (0..guests(wiring)).map(|m| folder.join(format!("{m}.sock")).display().to_string()).collect();
        let forwarder =
            Testpmd::forwarder(build, &stage.logs, &format!("testpmd{n}"), FORWARDER_CPU, &sockets, load)?;
        let generator = generator(stage, &format!("testpmd{n}-guest"), &sockets, load)?;
        contenders.push(Contender::new(&build.name, Forwarder::Testpmd(forwarder), generator));
    }
    let samples = stage.interleave(&mut contenders)?;
    ensure!(
        samples.iter().flatten().all(|sample| sample.rate > 0.0),
        "no frame came through in one of the slots"
    );
    let mut rate = Measure::new(
        "frames a second",
        "M/s",
        sides(&contenders, &samples, |sample| Some(sample.rate / 1e6)),
        Some(rate_target(load)),
    );
    rate.empty = samples[0].iter().filter_map(|sample| sample.empty).collect();
    rate.in_flight = samples.iter().flatten().filter_map(|sample| sample.in_flight).min();
    let target = if wiring == Wiring::Loop { cycles_target(load) } else { None };
    let cycles =
        Measure::new("cycles a frame", "", sides(&contenders, &samples, |sample| sample.cycles), target);
    // A loop that lost frames is another measurement: less is under way than the page says.
    let wanted = u64::from(IN_FLIGHT * load.pairs) * guests(wiring) as u64;
    if let Some(in_flight) = rate.in_flight.filter(|in_flight| *in_flight < wanted * 9 / 10) {
        println!("   only {in_flight} of {wanted} frames were under way in the end: some were lost");
    }
    Ok(vec![rate, cycles])
}

fn guests(wiring: Wiring) -> usize {
    match wiring {
        Wiring::Loop => 1,
        Wiring::VmToVm => 2,
    }
}

fn ours(stage: &Stage, wiring: Wiring, load: &Load) -> Result<Contender> {
    let far = stage.run.join("ours").join("far.sock").display().to_string();
    let device = match wiring {
        Wiring::Loop => loopbacks(0..1),
        Wiring::VmToVm => vec!["--add-device".to_owned(), format!("vhost-user:{far}=0")],
    };
    let daemon = stage.daemon("ours", 1, &device)?;
    let mut sockets = vec![daemon.socket(0)];
    if wiring == Wiring::VmToVm {
        ensure!(
            std::path::Path::new(&far).exists(),
            "not built: this daemon has no device vhost-user:SOCKET"
        );
        sockets.push(far);
    }
    let generator = generator(stage, "ours-guest", &sockets, load)?;
    Ok(Contender::new(OURS, Forwarder::Daemon(daemon), generator))
}

fn generator(stage: &Stage, name: &str, sockets: &[String], load: &Load) -> Result<Generator> {
    let testpmd = Testpmd::generator(&stage.builds[0], &stage.logs, name, GUEST_CPU, sockets, load)?;
    Ok(Generator::Testpmd(testpmd, sockets.len()))
}
