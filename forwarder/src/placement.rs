//! Which worker serves which relay.

use std::collections::BTreeMap;

use relay::mailbox::WorkerHandle;
use relay::relay::Placement;

use crate::worker::Worker;

/// CPUs that a relay is pinned to: VF to VM, VM to VF.
pub type Pins = BTreeMap<u32, (usize, usize)>;

/// Where relay `id` goes: where it is pinned, else to the workers in turn. Both directions stay together, so that the
/// guest's memory and rings are in one core's cache. `None` without workers.
pub fn place(id: u32, workers: &[Worker], pins: &Pins) -> Option<Placement> {
    let on = |cpu: usize| -> Option<WorkerHandle> {
        workers.iter().map(Worker::handle).find(|handle| handle.cpu == cpu).cloned()
    };
    let turn = || Some(workers.get(id as usize % workers.len().max(1))?.handle().clone());
    match pins.get(&id) {
        Some((vf_to_vm, vm_to_vf)) => Some(Placement { vf_to_vm: on(*vf_to_vm)?, vm_to_vf: on(*vm_to_vf)? }),
        None => turn().map(|worker| Placement { vf_to_vm: worker.clone(), vm_to_vf: worker }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::Idle;

    #[test]
    fn pinned_relays_stay_and_others_take_turns() {
        let cpu = core_affinity::get_core_ids().unwrap()[0].id;
        let workers = [Worker::start(cpu, Idle::default()).unwrap()];
        let pins = Pins::from([(1, (cpu, cpu)), (2, (cpu, 9999))]);
        assert_eq!(place(0, &workers, &pins).unwrap().vf_to_vm.cpu, cpu);
        assert_eq!(place(1, &workers, &pins).unwrap().vm_to_vf.cpu, cpu);
        assert!(place(2, &workers, &pins).is_none(), "no worker has that CPU");
        assert!(place(0, &[], &Pins::new()).is_none());
    }
}
