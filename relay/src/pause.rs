//! Waiting for a moment without giving the CPU away.

/// Lets the processor rest for up to `ticks` of its [clock](crate::turns::ticks): in a light sleep where it has `tpause`
/// (the kernel may end that sooner, see `umwait_control` in Linux), else for the few cycles of a `pause`.
#[inline]
pub fn pause(ticks: u64) {
    #[cfg(target_arch = "x86_64")]
    if has_tpause() {
        return tpause(super::turns::ticks().wrapping_add(ticks));
    }
    let _ = ticks;
    std::hint::spin_loop();
}

/// CPUID leaf 7, ECX bit 5 (WAITPKG; Intel SDM, volume 2, CPUID). A virtual machine that may not use it does not see it.
#[cfg(target_arch = "x86_64")]
fn has_tpause() -> bool {
    use std::sync::LazyLock;
    static THERE: LazyLock<bool> = LazyLock::new(|| {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ecx & 1 << 5 != 0
    });
    *THERE
}

/// Until the time stamp counter is at `deadline`, in the lighter of the two states (C0.1), which is left sooner.
#[cfg(target_arch = "x86_64")]
fn tpause(deadline: u64) {
    // SAFETY: the processor has the instruction (`has_tpause`); it reads three registers and changes only the flags.
    unsafe {
        std::arch::asm!(
            "tpause {state:e}",
            state = in(reg) 1u32,
            in("eax") deadline as u32,
            in("edx") (deadline >> 32) as u32,
            options(nomem, nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends() {
        (0..1000).for_each(|_| pause(1000));
    }
}
