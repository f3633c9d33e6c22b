//! How memory is got from the system, and how soon what nobody uses goes back: in small pages, and by settings of mimalloc, the
//! program's allocator. Where another one is in its place they do nothing.

use std::ffi::c_long;
use std::io;

use libmimalloc_sys::{_mi_option_last, mi_collect, mi_option_set_default, mi_option_t, mi_option_use_numa_nodes};

/// `mi_option_purge_delay` of mimalloc.h (version 3), which the bindings do not name.
const PURGE_DELAY: mi_option_t = 15;
/// Milliseconds. By default it is a second, in which replies of 1 MB come and go some hundred times. At once is too soon: what a
/// batch of misses needs would be taken from the system again by the next, page by page.
const SOON: c_long = 10;
/// `mi_option_arena_max_object_size`, likewise.
const SHARED_MAX: mi_option_t = 45;
/// KiB. What is larger has memory of its own, which goes back at once: a second value of 512 MB would be put beside the first
/// while that is on its way back.
const LARGE: c_long = 4096;

// The options' numbers are positions in an enum of mimalloc.h: those beside them, which the bindings do name, are where they were.
const _: () = assert!(mi_option_use_numa_nodes == PURGE_DELAY + 1);
const _: () = assert!(_mi_option_last == SHARED_MAX + 2);

/// From now on, memory comes in pages of 4 KiB. With those of 2 MiB, which mimalloc asks for and the kernel goes on making of
/// small ones, what is freed within one does not go back, and grows with time; misses are no cheaper, nor are hits.
///
/// # Errors
/// The system's: that it does not know, or does not allow, to be told.
pub fn use_small_pages() -> io::Result<()> {
    Ok(rustix::thread::disable_transparent_huge_pages(true)?)
}

/// From now on, what is free goes back soon, unless the environment says otherwise (`MIMALLOC_PURGE_DELAY`, in ms;
/// `MIMALLOC_ARENA_MAX_OBJECT_SIZE`, in KiB).
pub fn give_back_soon() {
    // SAFETY: the options exist, and take any number.
    unsafe {
        mi_option_set_default(PURGE_DELAY, SOON);
        mi_option_set_default(SHARED_MAX, LARGE);
    }
}

/// Gives back what is free, now. To ask for it (without force) was not enough: under full load nothing went back any more after 20 minutes.
/// By its source mimalloc 3 can come to believe that nothing is due, for good, if one thread looks while another frees.
pub fn give_back() {
    // `mi_collect` does nothing on a thread that has no heap yet: one byte makes it.
    drop(std::hint::black_box(Box::new(0_u8)));
    // SAFETY: may be called by any thread at any time.
    unsafe { mi_collect(true) }
}
