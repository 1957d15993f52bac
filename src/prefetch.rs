//! Memory that is needed soon, fetched ahead.
//!
//! Of each task some seven cache lines are touched for a decision, one from each table that is kept
//! by id. With some thousand tasks these tables are larger than the near caches, and the processor
//! itself sees no further ahead than one decision. So while one is made, the lines for the next are
//! asked for. With 65,536 tasks waiting that halves the time (`cargo bench --bench decision`).

/// Asks for the cache line of a value. No answer depends on it, and without a value it does
/// nothing.
///
/// # Cost
/// An instruction that waits for nothing. Nothing is fetched on processors other than x86-64.
#[inline(always)]
pub fn prefetch<T>(value: Option<&T>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(value) = value {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which neither reads nor writes for the program, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(core::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
