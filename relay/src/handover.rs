//! How things with one owner go from thread to thread: by message to the thread, which sleeps on a bell when it has
//! nothing to do.
//!
//! ```text
//!   others                 owner
//!   put the message        attend: take messages until there is none
//!   ring the bell          … work …
//!                          wait for the bell, make it quiet, and attend again
//! ```
//!
//! The bell is rung after the message was put there and made quiet before messages are looked for: a message that was
//! not seen has its bell still ringing, so that the owner does not sleep on it.

use std::time::Duration;

/// What has one owner at a time and is asked for by its name.
pub trait Owned {
    /// Its name.
    type Name: PartialEq;

    /// How it is asked for.
    fn name(&self) -> Self::Name;
}

/// How a thing gets to whoever asked for it.
pub trait Reply<T> {
    /// Hands it over; lost when nobody waits for it any more.
    fn hand_over(self, thing: Box<T>);
}

/// What owners are told. `R` is where the thing goes that was asked for.
#[derive(Debug)]
pub enum Message<T: Owned, R> {
    /// This is yours from now on.
    Adopt(Box<T>),
    /// Hand over what has this name, as it is.
    Recall(T::Name, R),
    /// End. An owner is only stopped when it has nothing.
    Stop,
}

/// The end of an owner's queue of messages that others have.
pub trait Post<T: Owned, R> {
    /// Puts a message behind the others.
    fn put(&self, message: Message<T, R>);
}

/// The end of it that the owner has.
pub trait Inbox<T: Owned, R> {
    /// Takes the first message.
    fn take(&self) -> Option<Message<T, R>>;
}

/// Where an owner keeps what it has.
pub trait Keep<T: Owned> {
    /// Takes a thing in.
    fn take_in(&mut self, thing: Box<T>);

    /// Hands out the one with this name, if it is there.
    fn hand_out(&mut self, name: &T::Name) -> Option<Box<T>>;
}

// Boxed as they come.
#[allow(clippy::vec_box)]
impl<T: Owned> Keep<T> for Vec<Box<T>> {
    fn take_in(&mut self, thing: Box<T>) {
        self.push(thing);
    }

    fn hand_out(&mut self, name: &T::Name) -> Option<Box<T>> {
        let at = self.iter().position(|thing| thing.name() == *name)?;
        Some(self.swap_remove(at))
    }
}

/// What an owner sleeps on.
pub trait Bell {
    /// Wakes the owner, or keeps it from going to sleep.
    fn ring(&self);

    /// What else wakes the owner, beside those who ring.
    type Other;

    /// Sleeps until the bell rings or was rung, or another that the owner listens to, each of which is told to `other`.
    /// `false` when the bell is silent, after `limit` at most.
    fn wait(&self, limit: Duration, other: impl FnMut(Self::Other)) -> bool;

    /// Makes the bell quiet.
    fn quieten(&self);
}

/// Sends a message to the owner at the other end of `post`, who sleeps on `bell`.
pub fn send<T: Owned, R>(post: &impl Post<T, R>, bell: &impl Bell, message: Message<T, R>) {
    post.put(message);
    bell.ring();
}

/// Obeys all messages that wait; `false` when one said to end.
#[inline]
pub fn attend<T: Owned, R: Reply<T>>(inbox: &impl Inbox<T, R>, owned: &mut impl Keep<T>) -> bool {
    while let Some(message) = inbox.take() {
        match message {
            Message::Adopt(thing) => owned.take_in(thing),
            Message::Recall(name, reply) => {
                if let Some(thing) = owned.hand_out(&name) {
                    reply.hand_over(thing);
                }
            }
            Message::Stop => return false,
        }
    }
    true
}

/// Sleeps for `limit` or until a message came, or something else that is told to `other`; to be followed by [`attend`].
pub fn sleep<B: Bell>(bell: &B, limit: Duration, other: impl FnMut(B::Other)) {
    if bell.wait(limit, other) {
        bell.quieten();
    }
}

/// Looks, without waiting, what else rang. The bell itself goes on ringing: a message may have come since [`attend`].
pub fn look<B: Bell>(bell: &B, other: impl FnMut(B::Other)) {
    bell.wait(Duration::ZERO, other);
}

/// All interleavings of a control thread and two owners in a handful of steps.
#[cfg(test)]
mod model {
    use std::collections::VecDeque;

    use std::sync::Arc;

    use loom::cell::UnsafeCell;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Mutex, Notify};
    use loom::thread::{self, JoinHandle};

    use super::*;
    use crate::handshake::{Fences, explore};

    /// What goes around: whoever has it writes to it, and loom sees when two do so at once or one not what another wrote.
    #[derive(Default)]
    struct Thing(UnsafeCell<u32>);

    impl Thing {
        fn step(&self) {
            // SAFETY: loom checks that nobody else is at it, which is what is to be proven.
            self.0.with_mut(|count| unsafe { *count += 1 });
        }

        fn steps(&self) -> u32 {
            // SAFETY: as above.
            self.0.with(|count| unsafe { *count })
        }
    }

    impl Owned for Thing {
        type Name = u32;

        fn name(&self) -> u32 {
            7
        }
    }

    /// Where a thing goes that was asked for.
    #[derive(Clone, Default)]
    struct Answer(Arc<(Mutex<Option<Box<Thing>>>, Notify)>);

    impl Reply<Thing> for Answer {
        fn hand_over(self, thing: Box<Thing>) {
            *self.0.0.lock().unwrap() = Some(thing);
            self.0.1.notify();
        }
    }

    /// The way to an owner. Its length is looked at first, as the channel of the daemon has it, and may be out of date.
    #[derive(Default)]
    struct Way {
        len: AtomicUsize,
        messages: Mutex<VecDeque<Message<Thing, Answer>>>,
        rung: Mutex<bool>,
        wake: Notify,
    }

    impl Post<Thing, Answer> for Way {
        fn put(&self, message: Message<Thing, Answer>) {
            let mut messages = self.messages.lock().unwrap();
            messages.push_back(message);
            self.len.store(messages.len(), Ordering::Relaxed);
        }
    }

    impl Inbox<Thing, Answer> for Way {
        fn take(&self) -> Option<Message<Thing, Answer>> {
            if self.len.load(Ordering::Relaxed) == 0 {
                return None;
            }
            let mut messages = self.messages.lock().unwrap();
            let message = messages.pop_front();
            self.len.store(messages.len(), Ordering::Relaxed);
            message
        }
    }

    impl Bell for Way {
        type Other = ();

        fn ring(&self) {
            *self.rung.lock().unwrap() = true;
            self.wake.notify();
        }

        /// However long it takes: a limit would hide what is looked for. Loom calls it a deadlock.
        fn wait(&self, _: Duration, _: impl FnMut(())) -> bool {
            while !*self.rung.lock().unwrap() {
                self.wake.wait();
            }
            true
        }

        fn quieten(&self) {
            *self.rung.lock().unwrap() = false;
        }
    }

    type Send = fn(&Way, Message<Thing, Answer>);
    type Sleep = fn(&Way, &mut Vec<Box<Thing>>) -> bool;

    fn right_send(way: &Way, message: Message<Thing, Answer>) {
        send(way, way, message);
    }

    // As production has them.
    #[allow(clippy::vec_box)]
    fn right_sleep(way: &Way, owned: &mut Vec<Box<Thing>>) -> bool {
        sleep(way, Duration::ZERO, |()| ());
        attend(way, owned)
    }

    fn owner(way: Arc<Way>, sleep: Sleep) -> JoinHandle<()> {
        thread::spawn(move || {
            let mut owned = Vec::new();
            let mut goes_on = attend(&*way, &mut owned);
            while goes_on {
                owned.iter().for_each(|thing| thing.step());
                goes_on = sleep(&way, &mut owned);
            }
            assert!(owned.is_empty());
        })
    }

    fn recall(way: &Way, send: Send) -> Box<Thing> {
        let answer = Answer::default();
        send(way, Message::Recall(7, answer.clone()));
        loop {
            if let Some(thing) = answer.0.0.lock().unwrap().take() {
                return thing;
            }
            answer.0.1.wait();
        }
    }

    /// A thing goes to each of so many owners in turn.
    fn round_trip(owners: usize, preemptions: usize, send: Send, sleep: Sleep) {
        explore(Fences::Modelled, Some(preemptions), move || {
            let ways: Vec<Arc<Way>> = (0..owners).map(|_| Arc::default()).collect();
            let threads: Vec<_> = ways.iter().map(|way| owner(Arc::clone(way), sleep)).collect();
            let mut thing = Box::<Thing>::default();
            for way in &ways {
                thing.step();
                let before = thing.steps();
                send(way, Message::Adopt(thing));
                thing = recall(way, send);
                assert!(thing.steps() >= before);
            }
            ways.iter().for_each(|way| send(way, Message::Stop));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn loom_one_owner_after_the_other_has_it_and_sees_what_was_done() {
        round_trip(1, 2, right_send, right_sleep);
        round_trip(2, 1, right_send, right_sleep);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_finds_that_a_bell_rung_before_the_message_wakes_nobody() {
        round_trip(
            1,
            2,
            |way, message| {
                way.ring();
                way.put(message);
            },
            right_sleep,
        );
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_finds_that_a_bell_quietened_after_the_last_look_wakes_nobody() {
        round_trip(1, 2, right_send, |way, owned| {
            way.wait(Duration::ZERO, |()| ());
            let goes_on = attend(way, owned);
            way.quieten();
            goes_on
        });
    }
}
