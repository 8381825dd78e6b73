//! Asking the processor for cache lines before they are needed. Rings and buffers were last touched by another core, so
//! that each line costs a hundred cycles or more to fetch; many are fetched at the same time if they are asked for early.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Brings a cache line near, to be read.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; any address is allowed.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Brings a cache line near, to be written: the other core's copy is taken from it in the same go.
#[inline(always)]
pub(crate) fn prefetch_to_write(at: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; any address is allowed.
    unsafe {
        _mm_prefetch::<_MM_HINT_ET0>(at.cast_const().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
