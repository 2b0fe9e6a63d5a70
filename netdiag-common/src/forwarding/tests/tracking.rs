//! Segments of TCP in the middle of their connection, which tracking picks up or finds invalid.

use super::*;
use crate::forwarding::conntrack::{Connection, Direction, Entry, State, TrackingSettings, Tuple, status};
use crate::forwarding::path::{Assumption, Decision, Tracked};

const ACK: u8 = 16;
const SYN_ACK: u8 = 18;

/// A segment that no entry is there for.
fn segment(flags: u8) -> Packet {
    let mut packet = packet();
    let at = packet.transport().unwrap().offset + 13;
    packet.bytes[at] = flags;
    packet
}

/// The same in a connection that has seen answers.
fn known_segment(flags: u8) -> Packet {
    let mut packet = segment(flags);
    let original = Tuple::of(&packet).unwrap();
    let (direction, bits, reply) = (Direction::Original, status::CONFIRMED | status::SEEN_REPLY, original.inverted());
    let entry = Entry { direction, status: bits, mark: 0, zone: 0, original, reply, masqueraded: Fact::Known(None) };
    packet.connection = Fact::Known(Connection::Existing(entry));
    packet
}

fn with(rules: Vec<Rule>, tcp_loose: Option<bool>, tcp_be_liberal: Option<bool>) -> RuleState {
    let mut state = state(rules, Vec::new());
    state.tracking_settings = Some(TrackingSettings { tcp_loose, tcp_be_liberal });
    state
}

fn tracked(path: &Path) -> Tracked {
    let found = path.decisions.iter().find_map(|decision| match decision {
        Decision::Tracked { tracked, .. } => Some(*tracked),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn a_connection_is_picked_up_in_its_middle_only_where_tcp_loose_is_on() {
    let of = |tcp_loose, flags| -> Vec<Tracked> {
        done(&with(Vec::new(), tcp_loose, Some(false)), &segment(flags)).paths.iter().map(tracked).collect()
    };
    assert_eq!(of(Some(true), ACK), [Tracked::State(State::New)]);
    assert_eq!(of(Some(false), ACK), [Tracked::Invalid]);
    // Both ways, where the kernel does not say.
    assert_eq!(of(None, ACK), [Tracked::State(State::New), Tracked::Invalid]);
    let unknown = done(&with(Vec::new(), None, None), &segment(ACK));
    let [Assumption::Unknown { what, .. }] = &unknown.paths[0].assumptions[..] else { panic!("{unknown:?}") };
    assert!(what.contains("nf_conntrack_tcp_loose"), "{what}");
    assert_eq!(of(Some(true), SYN_ACK), [Tracked::Invalid]);
}

#[test]
fn the_settings_are_read_only_where_a_segment_depends_on_them() {
    let unread = |packet: &Packet| missing(&state(vec![rule(1, asks(1))], Vec::new()), packet);
    assert_eq!(unread(&segment(ACK)), [Key::TrackingSettings]);
    assert_eq!(unread(&known_segment(ACK)), [Key::TrackingSettings]);
    done(&state(vec![rule(1, asks(1))], Vec::new()), &packet());
    done(&state(vec![rule(1, asks(2))], Vec::new()), &known_segment(ACK));
}

/// A rule that asks for states by their bits: 1 is invalid, 2 established.
fn asks(bits: u32) -> Vec<Expression> {
    let mask = expression::Bitwise::MaskXor { mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] };
    vec![
        Expression::Ct { key: 0, direction: None, to: 1 },
        Expression::Bitwise { from: 1, to: 1, bytes: 4, operation: mask },
        Expression::Compare { from: 1, operator: Operator::NotEqual, value: vec![0; 4] },
        verdict(Verdict::Drop),
    ]
}

/// `-m conntrack --ctstate INVALID`, of revision 3, and `-m state --state INVALID`.
fn asks_of_iptables() -> [Expression; 2] {
    let mut info = vec![0; 164];
    (info[146], info[150]) = (1, 1);
    [("conntrack", 3, info), ("state", 0, 1_u32.to_ne_bytes().to_vec())]
        .map(|(name, revision, info)| Expression::XtMatch { name: Arc::from(name), revision, info })
}

#[test]
fn the_window_of_a_connection_is_named_where_a_rule_asks_for_what_is_invalid() {
    let gaps = |expressions: Vec<Expression>, be_liberal, packet: &Packet| {
        done(&with(vec![rule(1, expressions)], Some(true), be_liberal), packet).paths.remove(0).gaps
    };
    let named = gaps(asks(1), Some(false), &known_segment(ACK));
    assert!(named.len() == 1 && named[0].ends_with("nf_conntrack_tcp_be_liberal is 0"), "{named:?}");
    assert!(gaps(asks(1), None, &known_segment(ACK))[0].contains("unless"));
    for part in asks_of_iptables() {
        assert_eq!(gaps(vec![part, verdict(Verdict::Drop)], Some(false), &known_segment(ACK)), named);
    }
    let map = Expression::Ct { key: 0, direction: None, to: 1 };
    assert_eq!(gaps(vec![map], Some(false), &known_segment(ACK)), named);
    for (expressions, be_liberal, packet) in [
        // Nothing is outside of the window.
        (asks(1), Some(true), known_segment(ACK)),
        // It asks for another state.
        (asks(2), Some(false), known_segment(ACK)),
        // The answer to the first segment, and what begins a connection.
        (asks(1), Some(false), known_segment(SYN_ACK)),
        (asks(1), Some(false), segment(ACK)),
        (asks(1), Some(false), packet()),
    ] {
        assert_eq!(gaps(expressions, be_liberal, &packet), [""; 0]);
    }
}
