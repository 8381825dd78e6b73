//! How a lane falls asleep: who is asked to ring for it.
//!
//! | what can bring work | how it rings |
//! |---|---|
//! | a transmit ring that is read | the guest kicks |
//! | a receive ring that frames wait for | the guest kicks when it has posted buffers |
//! | a device's receive queue | its own descriptor, see [`ReceiveQueue::arm`] |
//! | frames that wait, and are dropped after a time | not |
//! | a device that has borrowed frames | not |

use std::sync::Arc;

use pmd::{Armed, ReceiveQueue, TransmitQueue};

use crate::bells::{Bells, Ringer};
use crate::lane::{Lane, Sink, Source, is_held};
use crate::roster::{Rest, Rests};

impl Lane {
    /// Has all that rings for this lane ring among `bells`.
    pub(crate) fn ring_at(&mut self, bells: &Arc<Bells>) {
        let key = self.key;
        if self.ringers.is_empty() {
            self.ringers = self.sources.iter().map(device_ringer).collect();
        }
        let rings = self.sources.iter_mut().filter_map(|source| match source {
            Source::Guest(ring) => ring.kick(),
            Source::Device(_) => None,
        });
        let sinks = self.sinks.iter_mut().filter_map(|sink| match sink {
            Sink::Guest(ring) => ring.kick(),
            _ => None,
        });
        rings
            .chain(sinks)
            .chain(self.ringers.iter_mut().flatten())
            .for_each(|ringer| ringer.ring_at(bells, key));
    }
}

/// Its own copy of the device's descriptor: the device may close its own at any time.
fn device_ringer(source: &Source) -> Option<Ringer> {
    match source {
        Source::Device(queue) => queue.bell()?.try_clone_to_owned().ok().map(Ringer::new),
        Source::Guest(_) => None,
    }
}

impl Rests for Lane {
    #[inline]
    fn rest(&mut self) -> &mut Rest {
        &mut self.rest
    }

    fn arm(&mut self) -> Armed {
        let Self { sources, sinks, paths, starts, ringers, .. } = self;
        let mut armed = Armed::Rings;
        for (n, (source, range)) in sources.iter_mut().zip(starts.windows(2)).enumerate() {
            let own = &paths[range[0]..range[1]];
            // Behind frames that wait on its only path a source is not read.
            if matches!(own, [path] if !path.is_empty()) || is_held(source, own, sinks) {
                continue;
            }
            armed = armed.max(match source {
                Source::Guest(ring) => ring.arm(),
                Source::Device(queue) => {
                    let rings = ringers.get(n).is_some_and(|ringer| match ringer {
                        Some(ringer) => ringer.is_watched(),
                        None => queue.bell().is_none(),
                    });
                    queue.arm().max(if rings { Armed::Rings } else { Armed::Silent })
                }
            });
        }
        for path in paths.iter().filter(|path| !path.is_empty()) {
            // After some time they are dropped.
            armed = armed.max(Armed::Silent);
            if let Sink::Guest(ring) = &mut sinks[path.sink] {
                armed = armed.max(ring.arm());
            }
        }
        let lends =
            sinks.iter().any(|sink| matches!(sink, Sink::Device(sink) if sink.queue.outstanding() > 0));
        armed.max(if lends { Armed::Silent } else { Armed::Rings })
    }

    fn disarm(&mut self) {
        for source in &mut self.sources {
            match source {
                Source::Guest(ring) => ring.disarm(),
                Source::Device(queue) => queue.disarm(),
            }
        }
        for sink in &mut self.sinks {
            if let Sink::Guest(ring) = sink {
                ring.disarm();
            }
        }
    }
}
