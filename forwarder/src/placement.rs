//! Which worker serves which relay.

use std::collections::BTreeMap;

use relay::mailbox::WorkerHandle;
use relay::relay::Placement;

use crate::worker::Worker;

/// CPUs that a relay is pinned to: VF to VM, VM to VF.
pub type Pins = BTreeMap<u32, (usize, usize)>;

/// The CPUs of relay `id`, VF to VM and VM to VF: where it is pinned, else those of the workers in turn. Both directions stay
/// together, so that the guest's memory and rings are in one core's cache. `None` without workers.
pub fn cpus_of(id: u32, workers: &[usize], pins: &Pins) -> Option<(usize, usize)> {
    let turn = || workers.get(id as usize % workers.len().max(1)).map(|cpu| (*cpu, *cpu));
    pins.get(&id).copied().or_else(turn)
}

/// Where relay `id` goes. `None` where there is no worker for it.
pub fn place(id: u32, workers: &[Worker], pins: &Pins) -> Option<Placement> {
    let cpus: Vec<usize> = workers.iter().map(|worker| worker.handle().cpu).collect();
    let on = |cpu: usize| -> Option<WorkerHandle> {
        workers.iter().map(Worker::handle).find(|handle| handle.cpu == cpu).cloned()
    };
    let (vf_to_vm, vm_to_vf) = cpus_of(id, &cpus, pins)?;
    Some(Placement { vf_to_vm: on(vf_to_vm)?, vm_to_vf: on(vm_to_vf)? })
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
