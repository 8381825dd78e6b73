//! Asking the processor for cache lines before they are needed. Rings and buffers were last touched by another core, so
//! that each line costs a hundred cycles or more to fetch; many are fetched at the same time if they are asked for early.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Brings a cache line near, to be read.
#[inline(always)]
pub fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; any address is allowed.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Brings a cache line near, to be written: the other core's copy is taken from it in the same go.
///
/// PREFETCHW, which a processor without it takes for nothing to do (Intel SDM, volume 2). The compiler's own hint becomes a
/// prefetch for reading unless the whole program is built for such a processor.
#[inline(always)]
pub fn prefetch_to_write(at: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; any address is allowed.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
