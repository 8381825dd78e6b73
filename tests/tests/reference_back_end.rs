//! The built-in guest against a back end that others wrote: `vhost-user-backend` with `virtio-queue` rings. What our
//! back end is tested with is thereby itself tested.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use forwarder_tests::frames::{exchange, frame};
use forwarder_tests::wait::within;
use relay::driver::nic::{GuestNic, NicOptions};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

/// Copies every frame of the transmit queue to the receive queue, one at a time, with the crates' own means.
struct Echo {
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
}

impl VhostUserBackendMut for Echo {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        1 << 32 | 1 << 30 | 1 << 28 | 1 << 15
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> std::io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn handle_event(&mut self, _: u16, _: EventSet, rings: &[VringRwLock], _: usize) -> std::io::Result<()> {
        let memory = self.memory.memory();
        let (mut receive, mut transmit) = (rings[0].get_mut(), rings[1].get_mut());
        // It is called as soon as one of the rings runs.
        let ready = receive.get_queue().ready() && transmit.get_queue().ready();
        let Some(chains) = transmit.get_queue_mut().iter(memory.clone()).ok().filter(|_| ready) else {
            return Ok(());
        };
        let chains: Vec<_> = chains.collect();
        for chain in chains {
            let mut bytes = Vec::new();
            for piece in chain.clone() {
                let at = bytes.len();
                bytes.resize(at + piece.len() as usize, 0);
                memory.read_slice(&mut bytes[at..], piece.addr()).unwrap();
            }
            bytes[10] = 1;
            transmit.add_used(chain.head_index(), 0).unwrap();
            let Some(room) = receive.get_queue_mut().iter(memory.clone()).unwrap().next() else { continue };
            let buffer = room.clone().next().unwrap();
            memory.write_slice(&bytes, buffer.addr()).unwrap();
            receive.add_used(room.head_index(), bytes.len() as u32).unwrap();
        }
        Ok(())
    }
}

#[test]
fn the_built_in_guest_works_with_a_foreign_back_end() {
    let folder = tempfile::tempdir().unwrap();
    for (memory_slots, indirect, separate_header) in
        [(false, false, false), (true, true, false), (true, false, true)]
    {
        let path = folder.path().join(format!("{memory_slots}{indirect}.sock"));
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::<()>::new());
        let backend = Arc::new(Mutex::new(Echo { memory: memory.clone() }));
        let mut daemon = VhostUserDaemon::new("echo".to_owned(), backend, memory).unwrap();
        let mut listener = Listener::new(&path, true).unwrap();
        let serving = std::thread::spawn(move || {
            daemon.start(&mut listener).unwrap();
            // Ends with an error that says that the guest has left.
            let _ = daemon.wait();
        });
        let options =
            NicOptions { memory_slots, indirect, separate_header, mergeable: true, ..NicOptions::default() };
        assert!(within(std::time::Duration::from_secs(5), || path.exists()));
        let mut nic = GuestNic::connect(&path, options).unwrap();
        exchange(&mut nic, 0, 2000);
        assert!(nic.send(&frame(0)));
        drop(nic);
        serving.join().unwrap();
    }
}
