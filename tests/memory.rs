//! What is free goes back to the system when it is told to.

use std::hint::black_box;

use nearside::memory;

/// The program's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VALUE: usize = 1 << 20;
const VALUES: usize = 32;
/// What may stay.
const STAYS: usize = 4 << 20;

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("a Linux with /proc");
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("its second number");
    pages * 4096
}

/// By any thread, at once, and however often: the allocator's own belief that nothing is due yet does not count.
#[test]
fn what_is_free_goes_back_when_any_thread_says_so() {
    memory::give_back_soon();
    let before = resident();
    for round in 0..20 {
        let values: Vec<Vec<u8>> = (0..VALUES).map(|_| vec![1; VALUE]).collect();
        assert!(resident() > before + VALUES * VALUE / 2);
        drop(black_box(values));
        std::thread::spawn(memory::give_back).join().expect("a thread that ends");
        let stayed = resident().saturating_sub(before);
        assert!(stayed < STAYS, "round {round}: {} KiB stayed", stayed >> 10);
    }
}
