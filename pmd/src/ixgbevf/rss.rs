//! Which queue a frame goes to: the VF's own RSS on X550 and later, the PF's on older ones, over as many queues as the VF says.

use super::registers::*;
use crate::registers::Registers;

/// The key of Microsoft's verification suite, which drivers take by default: so a flow has the same hash everywhere.
const KEY: [u32; 10] = [
    0xda56_5a6d,
    0xc20e_5b25,
    0x3d25_6741,
    0xb08f_a343,
    0xcb2b_cad0,
    0xb430_7bae,
    0xa32d_cb77,
    0x0cf2_3080,
    0x3bb7_426a,
    0xfa01_acbe,
];
/// Entries of the table.
const ENTRIES: u32 = 64;

/// Spreads frames over `queues` (a power of two): with a table of its own where the device has one for each VF.
pub fn spread(registers: &dyn Registers, queues: u16, own: bool) {
    registers.write(VFPSRTYPE, queues.trailing_zeros() << PSRTYPE_RQPL_SHIFT);
    if !own {
        return;
    }
    if queues > 1 {
        for (at, word) in (VFRSSRK..).step_by(4).zip(KEY) {
            registers.write(at, word);
        }
        for (at, first) in (VFRETA..).step_by(4).zip((0..ENTRIES).step_by(4)) {
            let entries = [0, 1, 2, 3].map(|n| ((first + n) % u32::from(queues)) as u8);
            registers.write(at, u32::from_le_bytes(entries));
        }
    }
    registers.write(VFMRQC, if queues > 1 { MRQC_RSS } else { 0 });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::igbvf::double::Double;

    #[test]
    fn queues_take_turns_in_the_table_and_the_key_is_that_of_the_suite() {
        let double = Double::new();
        spread(&*double, 4, true);
        assert_eq!((double.peek(VFPSRTYPE), double.peek(VFMRQC) & 1), (2 << 29, 1));
        assert_eq!((double.peek(VFRETA), double.peek(VFRETA + 60)), (0x0302_0100, 0x0302_0100));
        let key: Vec<u8> = (0..10).flat_map(|n| double.peek(VFRSSRK + 4 * n).to_le_bytes()).collect();
        assert_eq!((&key[..4], &key[36..]), (&[0x6d, 0x5a, 0x56, 0xda][..], &[0xbe, 0xac, 0x01, 0xfa][..]));
        assert_eq!(double.writes(VFRETA + 64), 0);
    }

    #[test]
    fn one_queue_needs_no_table_and_older_devices_have_none() {
        let double = Double::new();
        spread(&*double, 1, true);
        assert_eq!((double.peek(VFPSRTYPE), double.peek(VFMRQC), double.writes(VFRETA)), (0, 0, 0));
        spread(&*double, 2, false);
        assert_eq!((double.peek(VFPSRTYPE), double.writes(VFMRQC)), (1 << 29, 1), "the first one's");
    }
}
