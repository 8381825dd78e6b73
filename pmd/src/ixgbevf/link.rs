//! The state of the wire, as the VF sees it.

use std::thread;
use std::time::Duration;

use super::registers::*;
use crate::device::Link;
use crate::registers::{ALL_ONES, Registers};

/// An 82599 with an SFP+ module says up and down in turn for up to 500 µs before it means it.
const LOOKS: u32 = 5;
const INTERVAL: Duration = Duration::from_micros(100);

/// What VFLINKS says; one that was down before is believed to be up when it says so each time for 500 µs.
pub fn link(registers: &dyn Registers, was_up: bool) -> Link {
    let mut links = registers.read(VFLINKS);
    for _ in 0..if was_up { 0 } else { LOOKS } {
        if !is_up(links) {
            return Link::Down;
        }
        thread::sleep(INTERVAL);
        links = registers.read(VFLINKS);
    }
    if !is_up(links) {
        return Link::Down;
    }
    let between = links & LINKS_SPEED_BETWEEN != 0;
    let speed = match (links >> LINKS_SPEED_SHIFT & 3, between) {
        (3, false) => 10_000,
        (3, true) => 2_500,
        (2, _) => 1_000,
        (1, false) => 100,
        (1, true) => 5_000,
        _ => 10,
    };
    Link::Up { speed: Some(speed) }
}

fn is_up(links: u32) -> bool {
    links != ALL_ONES && links & LINKS_UP != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Says these words in turn, the last one for ever.
    #[derive(Debug)]
    struct Saying(Mutex<Vec<u32>>);

    impl Registers for Saying {
        fn read(&self, _: u32) -> u32 {
            let mut words = self.0.lock().unwrap();
            if words.len() > 1 { words.remove(0) } else { words[0] }
        }

        fn write(&self, _: u32, _: u32) {}
    }

    fn of(words: &[u32], was_up: bool) -> Link {
        link(&Saying(Mutex::new(words.to_vec())), was_up)
    }

    #[test]
    fn speeds() {
        for (bits, speed) in [(3 << 28, 10_000), (3 << 28 | 1 << 27, 2_500), (2 << 28, 1_000), (1 << 28, 100)]
        {
            assert_eq!(of(&[LINKS_UP | bits], true), Link::Up { speed: Some(speed) });
        }
        assert_eq!(of(&[LINKS_UP | 1 << 28 | 1 << 27], false), Link::Up { speed: Some(5_000) });
    }

    #[test]
    fn a_link_that_flaps_is_down_and_one_that_was_up_is_believed() {
        let up = LINKS_UP | 3 << 28;
        assert_eq!(of(&[up, up, 0, up], false), Link::Down);
        assert_eq!(of(&[up, 0], true), Link::Up { speed: Some(10_000) });
        assert_eq!(of(&[0, up], true), Link::Down);
        assert_eq!(of(&[ALL_ONES], true), Link::Down);
    }
}
