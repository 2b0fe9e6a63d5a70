//! netdiag's kernel programs. They count and copy; every judgement is made elsewhere.
//!
//! One file per hook in `hook/`, the tables in `map` and `event`, counting in them in `table` and `event`, everything that
//! touches kernel memory in `read`, `packet` and `socket`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod conntrack;
mod event;
mod hook;
mod map;
mod packet;
mod read;
mod socket;
mod table;

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no program that can get here.
    unsafe { core::hint::unreachable_unchecked() }
}
