//! A packed ring whose driver writes whatever it likes.

use std::sync::Arc;

use relay::driver::memory::GuestRam;
use relay::driver::packed::{
    INDIRECT, NEXT, PackedDescriptor, PackedDriver, Suppression, WRITE, write_packed_descriptor,
};
use relay::guest::space::AddressSpace;
use relay::ring::notify::Call;
use relay::ring::{PackedRing, Ring, RingConfig};

use crate::input::Input;
use crate::rings::{self, Layout, World};

#[derive(Clone)]
struct Packed {
    ring: PackedDriver,
}

fn read(input: &mut Input) -> PackedDescriptor {
    let flags = input.u8();
    let (addr, len) = rings::buffer(input, flags & 0x80 != 0);
    PackedDescriptor {
        addr,
        len,
        flags: u16::from(flags) & (NEXT | WRITE | INDIRECT),
        id: u16::from(input.u8()),
    }
}

impl Layout for Packed {
    fn new(ram: &mut GuestRam) -> Self {
        Self { ring: PackedDriver::new(ram, 40).expect("there is room") }
    }

    fn sized(&self, size: u8) -> Self {
        let mut ring = self.ring.clone();
        ring.size = 2 + u16::from(size % 39);
        ring.free = ring.size;
        Self { ring }
    }

    fn config(&self, ram: &GuestRam) -> RingConfig {
        RingConfig {
            size: self.ring.size,
            descriptors: ram.user_of(self.ring.descriptors),
            available: ram.user_of(self.ring.driver_event),
            used: ram.user_of(self.ring.device_event),
            base: self.ring.base(),
            ..RingConfig::default()
        }
    }

    fn device(&self, config: &RingConfig, space: &Arc<AddressSpace>, call: Call) -> Ring {
        PackedRing::new(config, space, Some(call)).expect("all is well at first").into()
    }

    /// The descriptor that comes next, made available, as drivers write them.
    fn write(&mut self, ram: &GuestRam, input: &mut Input) {
        let (at, descriptor) = (self.ring.next_available, read(input));
        let flags = descriptor.flags | at.available_flags();
        self.ring.set(ram, at.slot, PackedDescriptor { flags, ..descriptor });
        self.ring.next_available = at.advanced(1, self.ring.size);
    }

    fn write_entry(&mut self, ram: &GuestRam, at: u64, input: &mut Input) {
        write_packed_descriptor(ram, at, read(input));
    }

    fn push(&mut self, ram: &GuestRam, input: &mut Input) {
        let n = 1 + usize::from(input.u8() % 4);
        let chain: Vec<_> = (0..n).map(|_| read(input)).collect();
        if self.ring.push(ram, u16::from(input.u8()), &chain) {
            self.ring.publish(ram);
        }
        while self.ring.pop(ram).is_some() {}
    }

    fn spoil(&mut self, ram: &GuestRam, input: &mut Input) {
        match input.u8() % 3 {
            0 => self.ring.set_flags(ram, u16::from(input.u8()) % self.ring.size, input.u16()),
            1 => self.ring.set_driver_event(ram, Suppression { event: input.u16(), flags: input.u16() }),
            _ => {
                let slot = u16::from(input.u8()) % self.ring.size;
                self.ring.set(ram, slot, PackedDescriptor { flags: input.u16(), ..read(input) });
            }
        }
    }

    /// Where it stands with what it completed.
    fn used(&self, _: &GuestRam, ring: &mut Ring) -> u32 {
        ring.base() >> 16
    }

    fn taken(&self, ring: &mut Ring) -> Option<u32> {
        Some(ring.base() & 0xffff)
    }
}

thread_local! {
    static WORLD: World<Packed> = World::new();
}

/// Plays a driver and a device by what the input says.
pub fn run(data: &[u8]) {
    WORLD.with(|world| rings::run(world, data));
}
