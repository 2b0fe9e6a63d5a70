//! Keeps the allocator from holding what one large report needed.

/// glibc gives each new thread an arena of its own, and readers are new threads: without a bound the agent's memory grows
/// with their number. To be called before the first thread starts.
#[cfg(target_env = "gnu")]
pub fn bound_arenas() {
    const ARENAS: libc::c_int = 2;
    // SAFETY: no other thread runs yet, and the parameter is a documented one.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Returns free memory to the node: glibc keeps the size of the largest reports for ever. Some milliseconds at most.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: thread-safe by its documentation (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
pub fn bound_arenas() {}

#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
