//! All programs together, on the running kernel: each is attached or says why not, and none is near the verifier's limit.

#[expect(dead_code, reason = "shared with the other kernel tests")]
mod support;

use netdiag_node::kernel::{Kernel, Sizes};
use support::load_part;

/// `BPF_COMPLEXITY_LIMIT_INSNS` (include/linux/bpf_verifier.h, Linux 6.18).
const LIMIT: u32 = 1_000_000;

/// Another kernel's compiler and verifier may need a third more.
const WITH_ROOM: u32 = LIMIT / 4 * 3;

/// A program that the verifier refuses is replaced by one that costs more, which nobody would notice. All kernels that we
/// promise have the first way (Linux 5.5).
#[test]
fn each_hook_is_attached_by_its_best_way() {
    const TEST: &str = "each_hook_is_attached_by_its_best_way";
    let Some(kernel) = load_part(TEST, Sizes::for_this_machine(), |sizes| Ok(Kernel::load(sizes, ""))) else { return };
    for check in kernel.checks().into_iter().filter(|check| check.ok) {
        assert!(check.detail == "tp_btf" || check.detail.starts_with("cgroup_skb"), "{}: {}", check.name, check.detail);
    }
}

#[test]
fn the_verifier_walks_far_below_its_limit() {
    const TEST: &str = "the_verifier_walks_far_below_its_limit";
    let Some(kernel) = load_part(TEST, Sizes::for_this_machine(), |sizes| Ok(Kernel::load(sizes, ""))) else { return };
    if kernel.programs.is_empty() {
        // Not built, no BTF or no rights: the other tests skip with the reason.
        eprintln!("netdiag-skip: {TEST}: no program is loaded: {}", kernel.checks()[0].detail);
        return;
    }
    let mut is_told = false;
    for program in aya::programs::loaded_programs() {
        let program = program.unwrap();
        let Some(name) = kernel.programs.get(&program.id()) else { continue };
        let Some(walked) = program.verified_instruction_count() else { continue };
        is_told = true;
        println!("{name}: {walked} instructions verified");
        assert!(walked <= WITH_ROOM, "{name}: the verifier walked through {walked} of {LIMIT} instructions");
    }
    if !is_told {
        eprintln!("netdiag-skip: {TEST}: this kernel does not say how far its verifier walked (Linux 5.16 does)");
    }
}
