//! How soon memory that nobody uses goes back to the system: a setting of mimalloc, the program's allocator. Where another
//! one is in its place it does nothing.

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

/// `mi_option_purge_delay` of mimalloc.h (version 3), which the bindings do not name.
const PURGE_DELAY: mi_option_t = 15;
/// Milliseconds: at once. By default it is a second, in which replies of 1 MB come and go some hundred times. Any delay lets the next
/// large one be put beside the last one while that is on its way back: two of 512 MB are then there at a time.
const SOON: c_long = 0;

/// From now on, what is free goes back at once, unless the environment (`MIMALLOC_PURGE_DELAY`, in ms) says otherwise.
pub fn give_back_soon() {
    // SAFETY: the option exists, and takes any number.
    unsafe { mi_option_set_default(PURGE_DELAY, SOON) }
}
