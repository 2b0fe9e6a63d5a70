//! A flood of refusals costs little and loses no count. In a program of its own: tests beside it would share its budget. Needs
//! root, BTF and the built programs.

#[expect(dead_code, reason = "shared with the other kernel tests")]
mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Instant;

use netdiag_common::Window;
use netdiag_common::observation::Owner;
use netdiag_common::observation::reject::RejectKind;
use netdiag_node::clock::now;
use netdiag_node::kernel::{KernelRejects, Sizes};
use support::{Namespace, lacks, load_part, owner, skipped};

#[test]
fn a_flood_of_refusals_is_counted_and_not_taken_apart() {
    const TEST: &str = "a_flood_of_refusals_is_counted_and_not_taken_apart";
    /// More than both lanes of a few CPUs take apart in the seconds that the flood lasts at the most.
    const PACKETS: usize = 400_000;
    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let Some(mut rejects) = load_part(TEST, Sizes::for_this_machine(), KernelRejects::load) else {
        return;
    };
    if lacks(TEST, &rejects.checks(), "icmp_send") {
        return;
    }
    let flooded = Namespace::new();
    let started = Instant::now();
    // On loopback the kernel limits no answers.
    flooded.send(LOCAL, 9000, 1, PACKETS);
    rejects.harvest(now());
    let seen = rejects.observe(now(), Window::FiveMinutes, &owner(&[(&flooded, "flooded")]));
    let accounts = seen.accounts;
    assert_eq!(accounts.unaccounted(), 0, "{accounts:?}");
    assert!(accounts.icmp_sent >= PACKETS as u64, "{accounts:?}");
    // Each CPU has two lanes, which take 8000 a second apart; an emulated machine may send fewer.
    let taken_apart = 16_000 * thread::available_parallelism().map_or(1, usize::from);
    let sent_a_second = PACKETS / usize::try_from(started.elapsed().as_secs()).unwrap().max(1);
    if accounts.shed == 0 && sent_a_second < taken_apart {
        return skipped(TEST, format!("{sent_a_second} packets a second are no flood"));
    }
    assert!(accounts.shed > 0, "{accounts:?}");
    let ours = seen.groups.iter().filter(|group| group.netns == Owner::Pod { uid: "flooded".to_owned() });
    let ours = ours.filter(|group| matches!(group.kind, RejectKind::IcmpSent { icmp_type: 3, code: 3 }));
    let named: u64 = ours.map(|group| group.packets).sum();
    assert!(named > 0 && named + accounts.shed >= PACKETS as u64, "{named} named, {accounts:?}");
}
