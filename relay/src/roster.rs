//! Who of a worker's lanes is polled, and how often.
//!
//! ```text
//!              ┌───────────── worked, or its bell rang ────────────┐
//!              ▼                                                   │
//!   awake: polled in each round ── quiet for [`QUIET`] ─▶ asleep: not at all │ dozing: every [`LOOK`],
//!                                                         its bells wake it  │ or when the worker wakes
//! ```
//!
//! A lane falls asleep when all that can bring it work rings a bell: it has the others asked to ring, looks once more,
//! and is not touched again. So quiet relays cost a busy one nothing but a look at the bells now and then, however many
//! they are. A lane of which something does not ring (a ring without kick descriptor, a device without interrupt, frames
//! that wait for a time to pass) dozes; so do all that are quiet where there are only a [`FEW`] and one keeps the worker from
//! sleeping.
//!
//! Now and then, whoever sleeps is looked at all the same: a device can lose an interrupt.
//!
//! What was asked for holds until the bell rings. Whoever was woken asks and looks again before it sleeps on, even if it
//! found nothing to forward: its step may have gone past what the others were asked to ring at.

use std::time::{Duration, Instant};

use pmd::Armed;

use crate::handover::{Keep, Owned};

/// A lane without work is polled on for this long at least.
pub const QUIET: Duration = Duration::from_micros(50);
/// And so many times as long as it took to have the others asked to ring, which costs a device much more under emulation: so
/// one with short breaks is not asked all the time.
const WORTH: u32 = 8;
/// But never for longer than this.
const MOST_QUIET: Duration = Duration::from_millis(1);
/// A busy worker looks so often at bells, and at lanes that doze.
pub const LOOK: Duration = Duration::from_micros(20);

/// So many of a worker's lanes are polled in less time than the system is asked whether their bells rang.
pub const FEW: usize = 5;

/// How a lane rests.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    /// When it last had work.
    since: Instant,
    /// What the others answered when they were last asked to ring; `None` when they are not to.
    armed: Option<Armed>,
    /// Something seemed to be there when it was last to fall asleep, and no work since.
    alarmed: bool,
    /// It is polled for so long after it had work.
    quiet: Duration,
}

impl Default for Rest {
    fn default() -> Self {
        Self { since: Instant::now(), armed: None, alarmed: false, quiet: QUIET }
    }
}

/// What can rest.
pub trait Rests: Owned {
    /// How it rests.
    fn rest(&mut self) -> &mut Rest;

    /// Asks all that can bring it work to ring, and looks once more whether there is some.
    fn arm(&mut self) -> Armed;

    /// Asks them not to.
    fn disarm(&mut self);
}

/// All that one worker has.
// Boxed as they come by message, so that a worker neither allocates nor moves them when they go.
#[allow(clippy::vec_box)]
#[derive(Debug)]
pub struct Roster<T: Rests> {
    awake: Vec<Box<T>>,
    dozing: Vec<Box<T>>,
    /// With their names, so that one can be found without a look at the others.
    asleep: Vec<(T::Name, Box<T>)>,
    may_sleep: bool,
}

impl<T: Rests> Roster<T> {
    /// With room for `most`, so that nothing is allocated until there are more. Unless they `may_sleep`, nobody is asked
    /// to ring.
    pub fn new(most: usize, may_sleep: bool) -> Self {
        let room = || Vec::with_capacity(most);
        Self { awake: room(), dozing: room(), asleep: Vec::with_capacity(most), may_sleep }
    }

    /// Those to be polled in each round.
    // A slice of what is kept in boxes.
    #[allow(clippy::vec_box)]
    pub fn awake(&mut self) -> &mut [Box<T>] {
        &mut self.awake
    }

    /// Those to be polled now and then.
    #[allow(clippy::vec_box)]
    pub fn dozing(&mut self) -> &mut [Box<T>] {
        &mut self.dozing
    }

    /// Whether nobody is to be polled in each round.
    pub fn is_quiet(&self) -> bool {
        self.awake.is_empty()
    }

    /// Whether nobody is to be polled, as long as no bell rings.
    pub fn is_asleep(&self) -> bool {
        self.awake.is_empty() && self.dozing.is_empty()
    }

    /// Whether somebody waits for a bell.
    pub fn has_sleepers(&self) -> bool {
        !self.asleep.is_empty()
    }

    /// Whether there is nobody at all.
    pub fn is_empty(&self) -> bool {
        self.is_asleep() && self.asleep.is_empty()
    }

    /// A bell of `name` rang.
    pub fn wake(&mut self, name: &T::Name) {
        if let Some(at) = self.asleep.iter().position(|(other, _)| other == name) {
            let mut thing = self.asleep.swap_remove(at).1;
            thing.rest().armed = Some(Armed::Ready);
            self.awake.push(thing);
        } else if let Some(at) = self.dozing.iter().position(|thing| thing.name() == *name) {
            self.awake.push(self.dozing.swap_remove(at));
        }
    }

    /// Everybody who sleeps gets one more look, as if its bell had rung: a bell that was lost delays frames, and no more.
    pub fn stir(&mut self) {
        for (_, mut thing) in self.asleep.drain(..) {
            thing.rest().armed = Some(Armed::Ready);
            self.awake.push(thing);
        }
    }

    /// Who worked is awake from now on, who has been quiet for long dozes or sleeps.
    pub fn settle(&mut self, now: Instant) {
        let mut at = 0;
        while let Some(thing) = self.dozing.get_mut(at) {
            if thing.rest().is_fresh(now) {
                self.awake.push(self.dozing.swap_remove(at));
            } else {
                at += 1;
            }
        }
        let few = self.awake.len() + self.dozing.len() + self.asleep.len() <= FEW;
        at = 0;
        while let Some(thing) = self.awake.get_mut(at) {
            if thing.rest().is_fresh(now) || (!few && thing.is_kept_up(self.may_sleep)) {
                at += 1;
                continue;
            }
            let thing = self.awake.swap_remove(at);
            self.lay_down(thing);
        }
        // What kept them from sleeping may be over.
        if self.awake.is_empty() && self.may_sleep {
            for at in (0..self.dozing.len()).rev() {
                let mut thing = self.dozing.swap_remove(at);
                if thing.is_kept_up(self.may_sleep) {
                    self.awake.push(thing);
                } else {
                    self.lay_down(thing);
                }
            }
        }
    }

    fn lay_down(&mut self, mut thing: Box<T>) {
        if thing.rest().armed == Some(Armed::Rings) {
            self.asleep.push((thing.name(), thing));
        } else {
            self.dozing.push(thing);
        }
    }
}

impl Rest {
    #[inline]
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < self.quiet
    }
}

/// What is done with one that may rest.
pub trait Resting: Rests {
    /// It had work, at `now`.
    #[inline]
    fn worked(&mut self, now: Instant) {
        let rest = self.rest();
        rest.since = now;
        rest.alarmed = false;
        if rest.armed.take().is_some() {
            self.disarm();
        }
    }

    /// Whether it is to be polled once more before it lies down, since something seems to be there. Only once: what a step
    /// cannot deal with does not keep it awake.
    fn is_kept_up(&mut self, may_sleep: bool) -> bool {
        if !may_sleep {
            return false;
        }
        let asked = Instant::now();
        let armed = self.arm();
        let rest = self.rest();
        rest.quiet = (asked.elapsed() * WORTH).clamp(QUIET, MOST_QUIET);
        rest.armed = Some(armed);
        let known = std::mem::replace(&mut rest.alarmed, armed == Armed::Ready);
        armed == Armed::Ready && !known
    }
}

impl<T: Rests> Resting for T {}

impl<T: Rests> Keep<T> for Roster<T> {
    fn take_in(&mut self, mut thing: Box<T>) {
        *thing.rest() = Rest::default();
        self.awake.push(thing);
    }

    /// As it was when it came: nobody is to ring for it.
    fn hand_out(&mut self, name: &T::Name) -> Option<Box<T>> {
        self.wake(name);
        let mut thing = self.awake.hand_out(name)?;
        if thing.rest().armed.take().is_some() {
            thing.disarm();
        }
        Some(thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What others would answer, and whether they are asked to ring.
    #[derive(Debug)]
    struct Thing {
        name: u32,
        rest: Rest,
        answer: Armed,
        asked: bool,
        /// What asking costs.
        cost: Duration,
    }

    impl Thing {
        fn new(name: u32, answer: Armed) -> Self {
            Self { name, rest: Rest::default(), answer, asked: false, cost: Duration::ZERO }
        }
    }

    impl Owned for Thing {
        type Name = u32;

        fn name(&self) -> u32 {
            self.name
        }
    }

    impl Rests for Thing {
        fn rest(&mut self) -> &mut Rest {
            &mut self.rest
        }

        fn arm(&mut self) -> Armed {
            self.asked = true;
            std::thread::sleep(self.cost);
            self.answer
        }

        fn disarm(&mut self) {
            self.asked = false;
        }
    }

    /// A roster with one thing, and a time at which that has been quiet for long enough.
    fn one(answer: Armed, may_sleep: bool) -> (Roster<Thing>, Instant) {
        let mut roster = Roster::new(8, may_sleep);
        roster.take_in(Box::new(Thing::new(7, answer)));
        (roster, Instant::now() + MOST_QUIET)
    }

    fn places(roster: &Roster<Thing>) -> [usize; 3] {
        [roster.awake.len(), roster.dozing.len(), roster.asleep.len()]
    }

    #[test]
    fn who_is_quiet_for_long_sleeps_until_its_bell_rings() {
        let (mut roster, later) = one(Armed::Rings, true);
        roster.settle(later - MOST_QUIET);
        assert_eq!(places(&roster), [1, 0, 0], "not yet");
        roster.settle(later);
        assert_eq!(places(&roster), [0, 0, 1]);
        roster.wake(&8);
        assert_eq!(places(&roster), [0, 0, 1], "another's");
        roster.wake(&7);
        assert_eq!(places(&roster), [1, 0, 0]);
        roster.awake()[0].asked = false;
        roster.settle(later);
        assert_eq!(places(&roster), [0, 0, 1], "a bell for nothing keeps nobody awake");
        assert!(roster.asleep[0].1.asked, "but it was asked for another one");
    }

    #[test]
    fn who_is_asked_at_a_high_price_is_polled_for_longer_before() {
        let (mut roster, later) = one(Armed::Rings, true);
        roster.awake()[0].cost = MOST_QUIET;
        roster.settle(later);
        roster.wake(&7);
        roster.awake()[0].worked(later);
        roster.settle(later + MOST_QUIET - QUIET);
        assert_eq!(places(&roster), [1, 0, 0]);
        roster.settle(later + MOST_QUIET);
        assert_eq!(places(&roster), [0, 0, 1]);
    }

    #[test]
    fn a_few_doze_while_another_works() {
        for (quiet, dozes) in [(FEW - 1, true), (FEW, false)] {
            let (mut roster, later) = one(Armed::Rings, true);
            for name in 10..10 + quiet as u32 {
                roster.take_in(Box::new(Thing::new(name, Armed::Rings)));
            }
            let work = |roster: &mut Roster<Thing>| {
                let worker = roster.awake().iter_mut().find(|thing| thing.name == 7);
                worker.unwrap().worked(later + MOST_QUIET);
            };
            let places_while_it_works = if dozes { [1, quiet, 0] } else { [1, 0, quiet] };
            work(&mut roster);
            roster.settle(later + MOST_QUIET);
            assert_eq!((places(&roster), roster.has_sleepers()), (places_while_it_works, !dozes));
            assert!(roster.dozing().iter().all(|thing| !thing.asked));
            roster.settle(later + 2 * MOST_QUIET);
            assert_eq!(places(&roster), [0, 0, quiet + 1], "nobody works");
            roster.stir();
            work(&mut roster);
            roster.settle(later + MOST_QUIET);
            assert_eq!(places(&roster), places_while_it_works);
        }
    }

    #[test]
    fn who_sleeps_is_stirred_for_one_look() {
        let (mut roster, later) = one(Armed::Rings, true);
        roster.settle(later);
        roster.stir();
        assert_eq!(places(&roster), [1, 0, 0]);
        roster.settle(later);
        assert_eq!(places(&roster), [0, 0, 1], "nothing was there");
        assert!(roster.asleep[0].1.asked);
        roster.stir();
        roster.awake()[0].worked(later);
        assert!(!roster.awake()[0].asked);
        roster.settle(later);
        assert_eq!(places(&roster), [1, 0, 0], "the bell was lost");
    }

    #[test]
    fn who_works_is_not_rung_for() {
        let (mut roster, later) = one(Armed::Rings, true);
        roster.settle(later);
        roster.wake(&7);
        assert!(roster.awake()[0].asked);
        roster.awake()[0].worked(later);
        assert!(!roster.awake()[0].asked);
        roster.settle(later);
        assert_eq!(places(&roster), [1, 0, 0]);
    }

    #[test]
    fn who_is_not_rung_for_dozes_and_wakes_with_work() {
        let (mut roster, later) = one(Armed::Silent, true);
        roster.settle(later);
        assert_eq!(places(&roster), [0, 1, 0]);
        roster.dozing()[0].worked(later);
        roster.settle(later);
        assert_eq!(places(&roster), [1, 0, 0]);
    }

    #[test]
    fn who_dozes_sleeps_as_soon_as_it_can() {
        let (mut roster, later) = one(Armed::Silent, true);
        roster.settle(later);
        roster.dozing()[0].answer = Armed::Rings;
        roster.settle(later);
        assert_eq!(places(&roster), [0, 0, 1]);
    }

    #[test]
    fn what_no_step_can_deal_with_keeps_nobody_awake() {
        let (mut roster, later) = one(Armed::Ready, true);
        roster.settle(later);
        assert_eq!(places(&roster), [1, 0, 0], "another step may find it");
        roster.settle(later);
        assert_eq!(places(&roster), [0, 1, 0]);
        roster.dozing()[0].worked(later);
        roster.settle(later);
        roster.settle(later + MOST_QUIET);
        assert_eq!(places(&roster), [1, 0, 0], "after work it counts again");
    }

    #[test]
    fn a_worker_that_polls_asks_nobody_to_ring() {
        let (mut roster, later) = one(Armed::Rings, false);
        (0..3).for_each(|_| roster.settle(later));
        assert_eq!(places(&roster), [0, 1, 0]);
        assert!(!roster.dozing()[0].asked);
    }

    #[test]
    fn wherever_it_is_it_is_handed_out_as_it_came() {
        for (answer, place) in [(Armed::Rings, [0, 0, 1]), (Armed::Silent, [0, 1, 0])] {
            let (mut roster, later) = one(answer, true);
            roster.settle(later);
            assert_eq!(places(&roster), place);
            assert!(roster.hand_out(&8).is_none());
            assert!(!roster.hand_out(&7).unwrap().asked);
            assert!(roster.is_empty() && roster.hand_out(&7).is_none());
        }
    }
}

/// All interleavings of a worker that falls asleep, a guest that gives it work, and a control thread.
#[cfg(test)]
mod model {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use loom::sync::{Mutex, Notify};
    use loom::thread;

    use super::*;
    use crate::handover::{self, Bell, Inbox, Message, Post, Reply};
    use crate::handshake::{self, Fences, explore};

    /// A ring: how much work there is, and whether the guest is to kick.
    #[derive(Debug, Default)]
    struct Ring {
        work: AtomicU32,
        kicks: AtomicBool,
        /// So much is there in the end.
        all: u32,
        /// All is seen.
        done: Notify,
    }

    #[derive(Debug)]
    struct Lane {
        ring: Arc<Ring>,
        seen: u32,
        rest: Rest,
    }

    impl Lane {
        fn step(&mut self) -> bool {
            let work = self.ring.work.load(Ordering::Acquire);
            if self.seen < work && work == self.ring.all {
                self.ring.done.notify();
            }
            std::mem::replace(&mut self.seen, work) != work
        }
    }

    impl Owned for Lane {
        type Name = u32;

        fn name(&self) -> u32 {
            7
        }
    }

    impl Rests for Lane {
        fn rest(&mut self) -> &mut Rest {
            &mut self.rest
        }

        fn arm(&mut self) -> Armed {
            let found = handshake::ask(
                self,
                |lane| lane.ring.kicks.store(true, Ordering::Relaxed),
                |lane| lane.ring.work.load(Ordering::Acquire) != lane.seen,
            );
            if found { Armed::Ready } else { Armed::Rings }
        }

        fn disarm(&mut self) {
            self.ring.kicks.store(false, Ordering::Relaxed);
        }
    }

    /// The bells of a worker, as epoll has them: the own one rings until it is quiet, an edge of the lane's is told of once.
    #[derive(Default)]
    struct Bells {
        rung: Mutex<(bool, bool)>,
        wake: Notify,
        messages: Mutex<VecDeque<Message<Lane, Answer>>>,
    }

    impl Bells {
        fn kick(&self) {
            self.rung.lock().unwrap().1 = true;
            self.wake.notify();
        }

        /// What rang, without waiting.
        fn look(&self, mut lane: impl FnMut(u32)) -> bool {
            let mut rung = self.rung.lock().unwrap();
            if std::mem::take(&mut rung.1) {
                lane(7);
            }
            rung.0
        }
    }

    impl Bell for Bells {
        type Other = u32;

        fn ring(&self) {
            self.rung.lock().unwrap().0 = true;
            self.wake.notify();
        }

        /// However long it takes: a limit would hide what is looked for. Loom calls it a deadlock.
        fn wait(&self, limit: Duration, mut other: impl FnMut(u32)) -> bool {
            let mut any = false;
            loop {
                let own = self.look(|name| {
                    any = true;
                    other(name);
                });
                if own || any || limit.is_zero() {
                    return own;
                }
                self.wake.wait();
            }
        }

        fn quieten(&self) {
            self.rung.lock().unwrap().0 = false;
        }
    }

    impl Post<Lane, Answer> for Bells {
        fn put(&self, message: Message<Lane, Answer>) {
            self.messages.lock().unwrap().push_back(message);
        }
    }

    impl Inbox<Lane, Answer> for Bells {
        fn take(&self) -> Option<Message<Lane, Answer>> {
            self.messages.lock().unwrap().pop_front()
        }
    }

    #[derive(Clone, Default)]
    struct Answer(Arc<(Mutex<Option<Box<Lane>>>, Notify)>);

    impl Reply<Lane> for Answer {
        fn hand_over(self, thing: Box<Lane>) {
            *self.0.0.lock().unwrap() = Some(thing);
            self.0.1.notify();
        }
    }

    /// What a worker may do wrong.
    #[derive(Clone, Copy, PartialEq)]
    enum Fault {
        None,
        /// It lets lanes fall asleep without asking anybody to ring.
        AsksNobody,
        /// It makes its own bell quiet where it does not look for messages.
        MissesMessages,
        /// Its fences, and the guest's, do nothing.
        NoFences,
    }

    /// The worker's loop, with all steps that take part: every lane is quiet for long enough at once.
    fn worker(bells: &Bells, fault: Fault) {
        let mut roster = Roster::<Lane>::new(1, true);
        // Ahead of the true time, which a lane has when it comes, so that it makes no difference how long anything takes.
        let mut now = Instant::now() + Duration::from_secs(3600);
        while handover::attend(bells, &mut roster) {
            now += MOST_QUIET;
            match fault {
                _ if roster.is_quiet() => {}
                Fault::MissesMessages => handover::sleep(bells, Duration::ZERO, |name| roster.wake(&name)),
                _ => handover::look(bells, |name| roster.wake(&name)),
            }
            let mut busy = false;
            for lane in roster.awake() {
                if lane.step() {
                    lane.worked(now);
                    busy = true;
                }
            }
            if fault == Fault::AsksNobody {
                let lanes = std::mem::take(&mut roster.awake);
                roster.asleep.extend(lanes.into_iter().map(|lane| (7, lane)));
            }
            roster.settle(now);
            if !busy && roster.is_quiet() {
                handover::sleep(bells, Duration::MAX, |name| roster.wake(&name));
            }
        }
    }

    fn guest(bells: &Bells, ring: &Ring) {
        for work in 1..=ring.all {
            let told = handshake::show(
                &mut (),
                |()| {
                    ring.work.store(work, Ordering::Release);
                    true
                },
                |()| ring.kicks.load(Ordering::Relaxed),
            );
            if told {
                bells.kick();
            }
        }
    }

    /// A guest gives work and kicks where it is asked to, while its lane goes to a worker; when all is seen the lane is
    /// recalled. If a kick is lost, everybody waits.
    fn guest_and_worker(all: u32, preemptions: usize, fault: Fault) {
        let fences = if fault == Fault::NoFences { Fences::LeftOut } else { Fences::Modelled };
        explore(fences, Some(preemptions), move || {
            let bells = Arc::<Bells>::default();
            let ring = Arc::new(Ring { all, ..Ring::default() });
            let theirs = Arc::clone(&bells);
            let thread = thread::spawn(move || worker(&theirs, fault));
            let (ringing, filled) = (Arc::clone(&bells), Arc::clone(&ring));
            let guest = thread::spawn(move || guest(&ringing, &filled));
            let lane = Lane { ring: Arc::clone(&ring), seen: 0, rest: Rest::default() };
            handover::send(&*bells, &*bells, Message::Adopt(Box::new(lane)));
            guest.join().unwrap();
            ring.done.wait();
            let answer = Answer::default();
            handover::send(&*bells, &*bells, Message::Recall(7, answer.clone()));
            let lane = loop {
                if let Some(lane) = answer.0.0.lock().unwrap().take() {
                    break lane;
                }
                answer.0.1.wait();
            };
            drop(lane);
            handover::send(&*bells, &*bells, Message::Stop);
            thread.join().unwrap();
        });
    }

    #[test]
    fn loom_a_kick_wakes_a_worker_whenever_it_falls_asleep() {
        guest_and_worker(1, 2, Fault::None);
        guest_and_worker(2, 1, Fault::None);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_finds_the_kick_that_is_lost_without_fences() {
        guest_and_worker(1, 2, Fault::NoFences);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_finds_the_message_that_is_lost_in_a_look_at_lanes() {
        guest_and_worker(1, 2, Fault::MissesMessages);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_finds_the_kick_that_nobody_was_asked_for() {
        guest_and_worker(1, 2, Fault::AsksNobody);
    }
}
