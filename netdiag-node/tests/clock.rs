//! The wall clock steps while the agent counts: counts and their spans come from the monotonic clock, so they stay what they are.

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::net::UdpSocket;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use netdiag_common::Window;
use netdiag_common::observation::Owner;

/// Noon of some day: the real clock is not asked.
const NOON_S: i64 = 1_767_268_800;

fn drop_some() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket on loopback");
    for _ in 0..10 {
        socket.send_to(b"dropped", "127.0.0.1:9").expect("sent to loopback");
    }
}

#[test]
fn a_clock_that_steps_changes_no_count_and_no_span() {
    let test = "a_clock_that_steps_changes_no_count_and_no_span";
    let Some(mut drops) = support::load(test, None) else { return };
    let noon = Timestamp::from_second(NOON_S).unwrap();
    drop_some();
    drops.harvest(noon);
    let before = drops.observe(noon, Window::FiveMinutes, &|_| Owner::Host);
    for step in [SignedDuration::from_hours(-3), SignedDuration::from_hours(5)] {
        let stepped = noon.checked_add(step).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        drop_some();
        drops.harvest(stepped);
        let found = drops.observe(stepped, Window::FiveMinutes, &|_| Owner::Host);
        assert!(found.accounts.total >= before.accounts.total + 10, "{:?}", found.accounts);
        assert!((0.0..60.0).contains(&found.window_s), "{} s", found.window_s);
        assert!(found.since <= stepped && stepped.duration_since(found.since) < SignedDuration::from_mins(1));
        for group in &found.groups {
            assert!(group.first_at <= group.last_at && group.last_at <= stepped, "{group:?}");
        }
    }
}
