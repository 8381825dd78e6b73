//! `null`: swallows what it is sent and never receives.

use crate::device::{
    Accepted, Armed, Completions, Device, DeviceError, DeviceEvent, DeviceStatistics, Identity, Queues,
    Receive, ReceiveQueue, Transmit, TransmitQueue,
};
use crate::frame::{Burst, Frames, Token};

/// The slow side.
#[derive(Debug)]
pub struct Null {
    identity: Identity,
}

impl Null {
    /// A device that always works.
    pub fn new() -> Self {
        let identity = Identity {
            name: "null".to_owned(),
            driver: "null",
            mac: None,
            max_frame: u32::from(u16::MAX),
            filters_by_mac: false,
            at_pf: None,
        };
        Self { identity }
    }
}

impl Default for Null {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for Null {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn start(&mut self) -> Result<Queues, DeviceError> {
        Ok(Queues { receive: vec![Receive::Null(NullReceive)], transmit: vec![Transmit::Null(NullTransmit)] })
    }

    fn stop(&mut self, queues: Queues) {
        drop(queues);
    }

    fn service(&mut self) -> Vec<DeviceEvent> {
        Vec::new()
    }

    fn statistics(&mut self) -> DeviceStatistics {
        DeviceStatistics::default()
    }
}

/// Accepts everything.
#[derive(Debug)]
pub struct NullTransmit;

impl TransmitQueue for NullTransmit {
    #[inline]
    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        Accepted::Copied(frames.len())
    }

    fn reclaim(&mut self, _done: &mut Completions) {}

    fn outstanding(&self) -> usize {
        0
    }

    fn abort(&mut self, _done: &mut Completions) {}
}

/// Receives nothing.
#[derive(Debug)]
pub struct NullReceive;

impl ReceiveQueue for NullReceive {
    #[inline]
    fn receive(&mut self, _burst: &mut Burst) {}

    fn release(&mut self, _token: Token) {}

    /// Nothing ever comes.
    fn arm(&mut self) -> Armed {
        Armed::Rings
    }
}
