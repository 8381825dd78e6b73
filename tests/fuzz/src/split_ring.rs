//! A split ring whose driver writes whatever it likes.

use std::sync::Arc;

use relay::driver::memory::GuestRam;
use relay::driver::split::{Descriptor, DriverRing, INDIRECT, NEXT, WRITE, write_descriptor};
use relay::guest::space::AddressSpace;
use relay::ring::notify::Call;
use relay::ring::{Ring, RingConfig, SplitRing};

use crate::input::Input;
use crate::rings::{self, Layout, World};

#[derive(Clone)]
struct Split {
    ring: DriverRing,
}

fn read(input: &mut Input) -> Descriptor {
    let flags = input.u8();
    let (addr, len) = rings::buffer(input, flags & 0x80 != 0);
    Descriptor { addr, len, flags: u16::from(flags) & (NEXT | WRITE | INDIRECT), next: u16::from(input.u8()) }
}

impl Layout for Split {
    fn new(ram: &mut GuestRam) -> Self {
        Self { ring: DriverRing::new(ram, 32).expect("there is room") }
    }

    fn sized(&self, size: u8) -> Self {
        Self { ring: DriverRing { size: 2 << (size % 5), ..self.ring.clone() } }
    }

    fn config(&self, ram: &GuestRam) -> RingConfig {
        RingConfig {
            size: self.ring.size,
            descriptors: ram.user_of(self.ring.descriptors),
            available: ram.user_of(self.ring.available),
            used: ram.user_of(self.ring.used),
            ..RingConfig::default()
        }
    }

    fn device(&self, config: &RingConfig, space: &Arc<AddressSpace>, call: Call) -> Ring {
        SplitRing::new(config, space, Some(call)).expect("all is well at first").into()
    }

    fn write(&mut self, ram: &GuestRam, input: &mut Input) {
        let slot = u16::from(input.u8()) % self.ring.size;
        self.ring.set(ram, slot, read(input));
    }

    fn write_entry(&mut self, ram: &GuestRam, at: u64, input: &mut Input) {
        write_descriptor(ram, at, read(input));
    }

    fn push(&mut self, ram: &GuestRam, input: &mut Input) {
        self.ring.push(ram, u16::from(input.u8()));
        self.ring.publish(ram);
    }

    fn spoil(&mut self, ram: &GuestRam, input: &mut Input) {
        match input.u8() % 3 {
            0 => self.ring.set_available_index(ram, input.u16()),
            1 => self.ring.set_flags(ram, input.u16()),
            _ => {
                ram.write(self.ring.available + 4 + 2 * u64::from(self.ring.size), &input.u16().to_le_bytes())
            }
        }
    }

    fn used(&self, ram: &GuestRam, _: &mut Ring) -> u32 {
        u32::from(self.ring.used_index(ram))
    }

    fn taken(&self, ring: &mut Ring) -> Option<u32> {
        Some(ring.base())
    }
}

thread_local! {
    static WORLD: World<Split> = World::new();
}

/// Plays a driver and a device by what the input says.
pub fn run(data: &[u8]) {
    WORLD.with(|world| rings::run(world, data));
}
