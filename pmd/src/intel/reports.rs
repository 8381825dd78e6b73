//! Which descriptors of a transmit ring report that they are sent: the device writes into those that ask for it (RS), and what
//! it reports for one slot holds for all before it.
//!
//! While anything is with the device, something is asked to report: so a device that stops is noticed
//! ([`watchdog`](crate::vf::watchdog)).

use std::sync::Arc;

use crate::vf::Progress;

/// Descriptors after which a report is asked for. A copied frame needs none sooner: only room in the ring waits for it.
const EVERY: u16 = 32;

/// The slots of a ring that will report, in order: `count` of them from `first`.
#[derive(Debug)]
pub struct Reports {
    slots: Box<[u16]>,
    first: u16,
    count: u16,
    /// Descriptors filled since the last one that reports.
    unreported: u16,
    progress: Arc<Progress>,
}

impl Reports {
    /// None yet, of a ring of `ring` slots, a power of two.
    pub fn new(ring: u16) -> Self {
        debug_assert!(ring.is_power_of_two());
        let slots = vec![0; usize::from(ring)].into_boxed_slice();
        Self { slots, first: 0, count: 0, unreported: 0, progress: Arc::default() }
    }

    fn mask(&self) -> u16 {
        self.slots.len() as u16 - 1
    }

    /// How the device gets on.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// One more descriptor is filled. Whether it had better report, where it is the last of its frame.
    #[inline]
    pub fn filled(&mut self) -> bool {
        self.unreported += 1;
        self.unreported >= EVERY
    }

    /// The descriptor in `slot`, the one that was filled last, will report.
    #[inline]
    pub fn expect(&mut self, slot: u16) {
        let at = (self.first + self.count) & self.mask();
        if let Some(entry) = self.slots.get_mut(usize::from(at)) {
            *entry = slot;
            self.count += 1;
        }
        self.unreported = 0;
    }

    /// Whether the last descriptor of a burst must report, because nothing else does; with `at_once`, because what it sent is
    /// waited for.
    #[inline]
    pub fn is_wanted(&self, at_once: bool) -> bool {
        self.unreported > 0 && (at_once || self.count == 0)
    }

    /// Takes the reports that are there, as `is_sent` sees them in the ring; the slot behind the last one, if there is one.
    #[inline]
    pub fn collect(&mut self, is_sent: impl Fn(u16) -> bool) -> Option<u16> {
        if self.count == 0 {
            return None;
        }
        let mut behind = None;
        let before = self.count;
        while self.count > 0 {
            let Some(&slot) = self.slots.get(usize::from(self.first)) else { break };
            if !is_sent(slot) {
                break;
            }
            behind = Some((slot + 1) & self.mask());
            self.first = (self.first + 1) & self.mask();
            self.count -= 1;
        }
        self.progress.looked(u64::from(before - self.count));
        behind
    }

    /// None is awaited any more.
    pub fn forget(&mut self) {
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_32_reports_and_the_last_of_a_burst_where_none_else_does() {
        let mut reports = Reports::new(64);
        assert!(!reports.is_wanted(true), "nothing was filled");
        assert!((1..=31).all(|_| !reports.filled()) && reports.filled());
        assert!(reports.is_wanted(false));
        reports.expect(31);
        reports.filled();
        assert!(!reports.is_wanted(false) && reports.is_wanted(true));
    }

    #[test]
    fn reports_are_taken_in_order_around_the_end() {
        let mut reports = Reports::new(64);
        [40, 63, 20].into_iter().for_each(|slot| reports.expect(slot));
        assert_eq!(reports.collect(|_| false), None);
        assert_eq!(reports.collect(|slot| slot != 20), Some(0));
        assert_eq!(reports.collect(|_| true), Some(21));
        assert_eq!(reports.collect(|_| true), None, "nothing is awaited");
    }
}
