//! `pcap:FILE`: plays a capture file to the guest, and records what the guest sends.
//!
//! - *Played* are the frames of FILE, if there is such a file: once, in their order, whatever their times are, as fast as
//!   the guest takes them; none is dropped because the guest is slow. A guest that leaves and comes back goes on where the
//!   file was.
//! - *Recorded* is everything that the guest sends, with times in nanoseconds, in `FILE.out.pcap`. No file is ever written
//!   over: if that one exists it is `FILE.out.1.pcap`, and so on, since a daemon that starts again has the same command
//!   line and nobody to ask. The log says which. It is for the daemon's user alone.
//!
//! Files are read and written by two threads, so that a slow disk holds up this guest and no other. What the worker hands
//! over waits in a ring; when that is full the guest's frames are not taken, and none that was taken is left out. When the
//! file cannot be written to (a full disk) the log says so, what waits in the ring counts as `tx_errors`, and from then on
//! the guest's frames are refused.

mod format;
mod pace;
mod player;
mod recorder;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::device::{
    Device, DeviceError, DeviceEvent, DeviceStatistics, Identity, Link, Queues, Receive, Transmit,
};
pub use player::PcapReceive;
use player::Player;
pub use recorder::PcapTransmit;
use recorder::Recorder;

/// Longest frame in bytes that is played or recorded.
const MAX_FRAME: u32 = 65535;
/// Recordings beside one another of one FILE.
const MOST_RECORDINGS: u32 = 1000;
/// How long a device that stops waits for its file: after that what was recorded is written when there is time.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// The slow side of a capture file.
#[derive(Debug)]
pub struct Pcap {
    identity: Identity,
    player: Option<Player>,
    recorder: Recorder,
    /// The queues, while it is stopped.
    queues: Option<(PcapReceive, PcapTransmit)>,
    notices: Receiver<String>,
    link: Option<Link>,
}

impl Pcap {
    /// Opens the file to be played, if it is there, and makes the one to record into.
    pub fn open(path: &Path) -> Result<Self, DeviceError> {
        let (notify, notices) = channel();
        let played = open_capture(path)?;
        let (player, receive) = match played {
            Some(file) => {
                let (player, receive) = Player::start(file, path.display().to_string(), notify.clone())?;
                (Some(player), receive)
            }
            None => (None, PcapReceive::silent()),
        };
        let (recorder, transmit, recording) = record_beside(path, notify)?;
        let playing = if player.is_some() { "is played" } else { "is not there, so nothing is played" };
        tracing::info!(
            "pcap:{}: it {playing}; what the VM sends is recorded in {}",
            path.display(),
            recording.display()
        );
        let identity = Identity {
            name: format!("pcap:{}", path.display()),
            driver: "pcap",
            mac: None,
            max_frame: MAX_FRAME,
            filters_by_mac: false,
            at_pf: None,
        };
        Ok(Self { identity, player, recorder, queues: Some((receive, transmit)), notices, link: None })
    }
}

/// The file at `path`, ready to be read; `None` if there is none.
fn open_capture(path: &Path) -> Result<Option<File>, DeviceError> {
    let failed = |cause: io::Error| {
        DeviceError::NotReady(format!(
            "cannot open {}: {cause}; give the daemon's user the right to read it",
            path.display()
        ))
    };
    // Somebody's pipe must not hold us up.
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(failed(cause)),
    };
    match file.metadata() {
        Ok(about) if about.is_file() => Ok(Some(file)),
        Ok(_) => Err(DeviceError::Unsupported(format!(
            "{} is not a regular file; name a capture file, or one that does not exist to only record",
            path.display()
        ))),
        Err(cause) => Err(failed(cause)),
    }
}

/// Begins a recording beside `path`, in a file that was not there before.
fn record_beside(
    path: &Path,
    notify: Sender<String>,
) -> Result<(Recorder, PcapTransmit, PathBuf), DeviceError> {
    let names = (0..MOST_RECORDINGS).map(|number| {
        let mut name = path.as_os_str().to_owned();
        name.push(if number == 0 { ".out.pcap".to_owned() } else { format!(".out.{number}.pcap") });
        PathBuf::from(name)
    });
    for name in names {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name) {
            Ok(file) => {
                let started = Recorder::start(file, name.display().to_string(), notify);
                return started.map(|(recorder, transmit)| (recorder, transmit, name));
            }
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
            Err(cause) => {
                return Err(DeviceError::NotReady(format!(
                    "cannot make {} to record into: {cause}; name a file in a directory that the daemon may write to",
                    name.display()
                )));
            }
        }
    }
    Err(DeviceError::NotReady(format!(
        "there are {MOST_RECORDINGS} recordings {}.out.….pcap; remove those that are not needed",
        path.display()
    )))
}

impl Device for Pcap {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn start(&mut self) -> Result<Queues, DeviceError> {
        let (receive, transmit) = self
            .queues
            .take()
            .ok_or_else(|| DeviceError::Failed(format!("{} lost its queues", self.identity.name)))?;
        Ok(Queues { receive: vec![Receive::Pcap(receive)], transmit: vec![Transmit::Pcap(transmit)] })
    }

    fn stop(&mut self, mut queues: Queues) {
        if let (Some(Receive::Pcap(mut receive)), Some(Transmit::Pcap(transmit))) =
            (queues.receive.pop(), queues.transmit.pop())
        {
            receive.take_back();
            self.queues = Some((receive, transmit));
        }
        self.recorder.settle(SETTLE_TIME);
    }

    fn service(&mut self) -> Vec<DeviceEvent> {
        let link = Link::Up { speed: None };
        let new = self.link.replace(link).is_none().then_some(DeviceEvent::Link(link));
        new.into_iter().chain(self.notices.try_iter().map(DeviceEvent::Notice)).collect()
    }

    /// Frames of the file that were left out count as errors, and those that were accepted when the recording failed.
    fn statistics(&mut self) -> DeviceStatistics {
        DeviceStatistics {
            rx_errors: self.player.as_ref().map_or(0, Player::left_out),
            tx_errors: self.recorder.lost(),
            ..DeviceStatistics::default()
        }
    }
}

#[cfg(test)]
mod tests;
