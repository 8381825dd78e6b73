//! How two sides that sleep when there is nothing to do never both sleep with something to do.
//!
//! ```text
//!   one side              the other
//!   show something        ask to be told
//!   fence                 fence
//!   was it asked?         look once more
//! ```
//!
//! Each writes first and reads after. With both fences at least one of them reads what the other wrote: either it is told,
//! or it has seen. Without, each could read before its own write is visible, and both would sleep. Rings speak like this
//! in both directions: used entries and interrupts, available entries and kicks.

use std::sync::atomic::Ordering;
#[cfg(not(test))]
use std::sync::atomic::fence;

#[cfg(test)]
use model::fence;
#[cfg(test)]
pub(crate) use model::{Fences, explore};

/// Shows the other side something, by `show`, and reads after that, by `tell`, whether it is to be told. `show` says whether
/// there is anything to ask; otherwise `tell` is left out.
#[inline]
pub(crate) fn show<S, T: Default>(
    side: &mut S,
    show: impl FnOnce(&mut S) -> bool,
    tell: impl FnOnce(&mut S) -> T,
) -> T {
    if !show(side) {
        return T::default();
    }
    fence(Ordering::SeqCst);
    tell(side)
}

/// Asks the other side to be told, by `ask`, and looks after that, by `look`, for what came before it knew. What is
/// found then nobody tells of.
#[inline]
pub(crate) fn ask<S, T>(side: &mut S, ask: impl FnOnce(&mut S), look: impl FnOnce(&mut S) -> T) -> T {
    ask(side);
    fence(Ordering::SeqCst);
    look(side)
}

/// All interleavings, and all that the memory model allows, of two sides in a handful of steps.
#[cfg(test)]
mod model {
    use std::cell::Cell;
    use std::sync::Arc;

    use loom::sync::Notify;
    use loom::sync::atomic::{AtomicBool, AtomicU16, Ordering};
    use loom::thread;

    use crate::ring::event::{DISABLE, ENABLE, need_event};

    /// What a fence is.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Fences {
        /// That of the processor, outside models.
        Real,
        /// That of the model's memory.
        Modelled,
        /// The mutant: nothing.
        LeftOut,
    }

    std::thread_local! {
        /// A model runs on one thread of the system, whichever its own threads are.
        static FENCES: Cell<Fences> = const { Cell::new(Fences::Real) };
    }

    pub fn fence(order: Ordering) {
        match FENCES.get() {
            Fences::Real => std::sync::atomic::fence(order),
            Fences::Modelled => loom::sync::atomic::fence(order),
            Fences::LeftOut => {}
        }
    }

    /// Runs a model in all interleavings, with at most so many preemptions in each.
    pub fn explore(fences: Fences, preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                FENCES.set(Fences::Real);
            }
        }
        let _reset = Reset;
        FENCES.set(fences);
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions;
        builder.check(model);
    }

    fn with_fences(model: impl Fn() + Send + Sync + 'static) {
        explore(Fences::Modelled, None, model);
    }

    fn without_fences(model: impl Fn() + Send + Sync + 'static) {
        explore(Fences::LeftOut, None, model);
    }

    /// What both sides of a ring share of it: an index that one of them shows, and what the other wants to be told of.
    #[derive(Default)]
    struct Shared {
        index: AtomicU16,
        event: AtomicU16,
        eventfd: Notify,
        /// What the index covers.
        entries: [AtomicU16; 2],
    }

    /// The side that sleeps until both entries are there: a driver with interrupts, a device with kicks.
    fn sleeper(shared: &Shared, ask_for: impl Fn(&Shared, u16)) {
        let mut seen = 0u16;
        while seen < 2 {
            let found = super::ask(
                &mut seen,
                |seen| ask_for(shared, *seen),
                |seen| {
                    let index = shared.index.load(Ordering::Acquire);
                    (*seen..index).for_each(|n| {
                        let entry = shared.entries[usize::from(n)].load(Ordering::Relaxed);
                        assert_eq!(entry, n + 1, "shown before it was written");
                    });
                    std::mem::replace(seen, index) != index
                },
            );
            if !found {
                // Forever, if nobody tells: loom calls that a deadlock.
                shared.eventfd.wait();
            }
        }
    }

    /// The side that shows two entries, one after the other.
    fn shower(shared: &Shared, is_asked: impl Fn(&Shared, u16, u16) -> bool) {
        for old in 0..2u16 {
            let told = super::show(
                &mut (),
                |()| {
                    shared.entries[usize::from(old)].store(old + 1, Ordering::Relaxed);
                    shared.index.store(old + 1, Ordering::Release);
                    true
                },
                |()| is_asked(shared, old, old + 1),
            );
            if told {
                shared.eventfd.notify();
            }
        }
    }

    fn both(
        ask_for: impl Fn(&Shared, u16) + Send + Sync + Copy + 'static,
        is_asked: impl Fn(&Shared, u16, u16) -> bool + Send + Sync + Copy + 'static,
    ) -> impl Fn() + Send + Sync + 'static {
        move || {
            let shared = Arc::new(Shared::default());
            let theirs = Arc::clone(&shared);
            let other = thread::spawn(move || shower(&theirs, is_asked));
            sleeper(&shared, ask_for);
            other.join().unwrap();
        }
    }

    /// With event indices: the sleeper names the entry that it waits for.
    fn by_index() -> impl Fn() + Send + Sync + 'static {
        both(
            |shared, seen| shared.event.store(seen, Ordering::Relaxed),
            |shared, old, new| need_event(shared.event.load(Ordering::Relaxed), new, old),
        )
    }

    /// With flags: on while the sleeper looks and sleeps. It begins with being told of nothing.
    fn by_flag() -> impl Fn() + Send + Sync + 'static {
        move || {
            let shared = Arc::new(Shared::default());
            shared.event.store(DISABLE, Ordering::Relaxed);
            let theirs = Arc::clone(&shared);
            let other = thread::spawn(move || {
                shower(&theirs, |shared, _, _| shared.event.load(Ordering::Relaxed) == ENABLE);
            });
            sleeper(&shared, |shared, _| shared.event.store(ENABLE, Ordering::Relaxed));
            other.join().unwrap();
        }
    }

    #[test]
    fn loom_no_notification_is_lost_with_event_indices() {
        with_fences(by_index());
    }

    #[test]
    fn loom_no_notification_is_lost_with_flags() {
        with_fences(by_flag());
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_finds_the_lost_notification_without_fences_and_with_event_indices() {
        without_fences(by_index());
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_finds_the_lost_notification_without_fences_and_with_flags() {
        without_fences(by_flag());
    }

    /// The smallest form: two sides that were both asleep, one step each.
    #[test]
    #[should_panic(expected = "neither told nor seen")]
    fn loom_finds_both_sides_asleep_without_fences() {
        without_fences(|| {
            let shared = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
            let theirs = Arc::clone(&shared);
            let step = |shared: &[AtomicBool; 2], own: usize| {
                shared[own].store(true, Ordering::Release);
                fence(Ordering::SeqCst);
                shared[1 - own].load(Ordering::Acquire)
            };
            let other = thread::spawn(move || step(&theirs, 0));
            let seen = step(&shared, 1);
            assert!(other.join().unwrap() || seen, "neither told nor seen");
        });
    }
}
