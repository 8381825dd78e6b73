//! Queues as the device knows them: created and destroyed through the admin queue.

use super::admin::{AdminError, AdminQueue, Command, Opcode};
use super::mmio::Mmio;

/// A completion queue has no interrupt.
const NO_VECTOR: u32 = u32::MAX;

/// Which way frames go (`ena_admin_sq_direction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the device.
    Transmit = 1,
    /// From it.
    Receive = 2,
}

/// A submission queue and the completion queue behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    direction: Direction,
    /// The device's number of the submission queue.
    pub submission: u16,
    completion: u16,
    /// Where the doorbell is in the register BAR.
    pub doorbell: u32,
    /// Where the register is that unmasks the interrupt.
    pub unmask: u32,
    /// Where the ring is in the memory BAR, if it is there.
    pub memory: u32,
}

/// What a pair is created with.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Which way.
    pub direction: Direction,
    /// Entries of both rings.
    pub depth: u16,
    /// Bytes of a completion.
    pub completion_size: usize,
    /// Where the completion ring is.
    pub completions: u64,
    /// Where the submission ring is; `None` for one in the memory of the device.
    pub submissions: Option<u64>,
    /// The interrupt.
    pub vector: Option<u16>,
}

impl Pair {
    /// Has the device create both queues; neither is left when that fails.
    pub fn create(admin: &mut AdminQueue, mmio: &Mmio, plan: &Plan) -> Result<Self, AdminError> {
        // Drivers always enable the interrupt mode, and give a vector that there is not where they poll.
        let interrupt_mode = 1 << 5;
        let words = (plan.completion_size / 4) as u32;
        let depth = u32::from(plan.depth);
        let create = Command::new(Opcode::CreateCq)
            .word(1, interrupt_mode | words << 8 | depth << 16)
            .word(2, plan.vector.map_or(NO_VECTOR, u32::from))
            .address(3, plan.completions);
        let completion = admin.execute(mmio, create)?;
        let id = completion[2] & 0xffff;
        let (host, device, contiguous) = (1, 3, 1 << 24);
        let placement = if plan.submissions.is_some() { host } else { device };
        let identity = (plan.direction as u32) << 5;
        let create = Command::new(Opcode::CreateSq)
            .word(1, identity | placement << 16 | contiguous)
            .word(2, id | depth << 16)
            .address(3, plan.submissions.unwrap_or(0));
        let submission = match admin.execute(mmio, create) {
            // A depth of its own is not ours.
            Ok(_) if completion[2] >> 16 != depth => Err(AdminError::Garbled),
            reply => reply,
        };
        match submission {
            Ok(submission) => Ok(Self {
                direction: plan.direction,
                submission: submission[2] as u16,
                completion: id as u16,
                doorbell: submission[3],
                unmask: completion[5],
                memory: submission[4],
            }),
            Err(cause) => {
                let _ = admin.execute(mmio, Command::new(Opcode::DestroyCq).word(1, id));
                Err(cause)
            }
        }
    }

    /// Whether frames come through it.
    pub fn is_receive(&self) -> bool {
        self.direction == Direction::Receive
    }

    /// Has the device forget both queues: it touches their memory no more.
    pub fn destroy(&self, admin: &mut AdminQueue, mmio: &Mmio) -> Result<(), AdminError> {
        let identity = (self.direction as u32) << 5;
        let submission = u32::from(self.submission) | identity << 16;
        admin.execute(mmio, Command::new(Opcode::DestroySq).word(1, submission))?;
        admin.execute(mmio, Command::new(Opcode::DestroyCq).word(1, u32::from(self.completion)))?;
        Ok(())
    }
}
