//! ICMP errors in people's words (RFC 792, RFC 1812 §5.2.7, RFC 4443 §3).

use netdiag_common::observation::series::IcmpError;

/// ICMPv4 types.
pub(super) const UNREACHABLE: u8 = 3;
pub(super) const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
/// Code of [`UNREACHABLE`]: fragmentation needed and DF set.
pub(super) const FRAGMENTATION_NEEDED: u8 = 4;
/// Code of [`UNREACHABLE`].
pub(super) const PORT_UNREACHABLE: u8 = 3;
/// ICMPv6 types.
pub(super) const UNREACHABLE_V6: u8 = 1;
pub(super) const PACKET_TOO_BIG_V6: u8 = 2;
pub(super) const TIME_EXCEEDED_V6: u8 = 3;
const PARAMETER_PROBLEM_V6: u8 = 4;
/// Code of [`UNREACHABLE_V6`].
pub(super) const PORT_UNREACHABLE_V6: u8 = 4;

/// What an error's numbers say. `mtu` counts for a "too big" alone; 0 is what routers before RFC 1191 send there: none.
pub(super) fn icmp_error(is_v6: bool, kind: u8, code: u8, mtu: u32) -> IcmpError {
    let words = if is_v6 { words_v6(kind, code) } else { words_v4(kind, code) };
    let words = words.map_or_else(|| format!("ICMP type {kind} code {code}"), ToOwned::to_owned);
    let mtu = (is_too_big(is_v6, kind, code) && mtu != 0).then_some(mtu);
    IcmpError { kind, code, words, mtu }
}

/// "Fragmentation needed" or "packet too big".
pub(super) fn is_too_big(is_v6: bool, kind: u8, code: u8) -> bool {
    if is_v6 { kind == PACKET_TOO_BIG_V6 } else { (kind, code) == (UNREACHABLE, FRAGMENTATION_NEEDED) }
}

/// A router's answer to a packet whose TTL ended there.
pub(super) fn is_time_exceeded(is_v6: bool, kind: u8, code: u8) -> bool {
    let exceeded = if is_v6 { TIME_EXCEEDED_V6 } else { TIME_EXCEEDED };
    (kind, code) == (exceeded, 0)
}

/// What a host says for a port that nobody has.
pub(super) fn is_port_unreachable(is_v6: bool, kind: u8, code: u8) -> bool {
    let port = if is_v6 { (UNREACHABLE_V6, PORT_UNREACHABLE_V6) } else { (UNREACHABLE, PORT_UNREACHABLE) };
    (kind, code) == port
}

/// Whether a message says that the packet which it quotes came to its end there. Of those that RFC 1122 §3.2.2 counts among errors, a
/// redirect says that the packet went on (RFC 792), and a source quench that packets should come more slowly (deprecated by RFC 6633).
pub(super) fn is_error(is_v6: bool, kind: u8) -> bool {
    if is_v6 {
        matches!(kind, UNREACHABLE_V6 | PACKET_TOO_BIG_V6 | TIME_EXCEEDED_V6 | PARAMETER_PROBLEM_V6)
    } else {
        matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }
}

fn words_v4(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (UNREACHABLE, 0) => "network unreachable",
        (UNREACHABLE, 1) => "host unreachable",
        (UNREACHABLE, 2) => "protocol unreachable",
        (UNREACHABLE, PORT_UNREACHABLE) => "port unreachable",
        (UNREACHABLE, FRAGMENTATION_NEEDED) => "fragmentation needed",
        (UNREACHABLE, 5) => "source route failed",
        (UNREACHABLE, 6) => "network unknown",
        (UNREACHABLE, 7) => "host unknown",
        (UNREACHABLE, 9) => "network prohibited",
        (UNREACHABLE, 10) => "host prohibited",
        (UNREACHABLE, 11) => "network unreachable for this service",
        (UNREACHABLE, 12) => "host unreachable for this service",
        (UNREACHABLE, 13) => "administratively prohibited",
        (TIME_EXCEEDED, 0) => "time exceeded",
        (TIME_EXCEEDED, 1) => "fragment reassembly time exceeded",
        (PARAMETER_PROBLEM, _) => "parameter problem",
        _ => return None,
    })
}

fn words_v6(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (UNREACHABLE_V6, 0) => "no route",
        (UNREACHABLE_V6, 1) => "administratively prohibited",
        (UNREACHABLE_V6, 2) => "beyond scope of source address",
        (UNREACHABLE_V6, 3) => "address unreachable",
        (UNREACHABLE_V6, PORT_UNREACHABLE_V6) => "port unreachable",
        (UNREACHABLE_V6, 5) => "source address failed policy",
        (UNREACHABLE_V6, 6) => "reject route",
        (PACKET_TOO_BIG_V6, _) => "packet too big",
        (TIME_EXCEEDED_V6, 0) => "time exceeded",
        (TIME_EXCEEDED_V6, 1) => "fragment reassembly time exceeded",
        (PARAMETER_PROBLEM_V6, _) => "parameter problem",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_words() {
        for (is_v6, kind, code, words) in [
            (false, 3, 3, "port unreachable"),
            (false, 3, 13, "administratively prohibited"),
            (false, 11, 0, "time exceeded"),
            (true, 1, 4, "port unreachable"),
            (true, 3, 0, "time exceeded"),
            (true, 3, 3, "ICMP type 3 code 3"),
        ] {
            assert_eq!(icmp_error(is_v6, kind, code, 0).words, words);
        }
    }

    #[test]
    fn redirects_and_source_quenches_end_no_packet() {
        let errors = |is_v6| (0..=u8::MAX).filter(|kind| is_error(is_v6, *kind)).collect::<Vec<_>>();
        assert_eq!(errors(false), [3, 11, 12]);
        assert_eq!(errors(true), [1, 2, 3, 4]);
    }

    #[test]
    fn only_too_big_names_an_mtu() {
        assert_eq!(icmp_error(false, UNREACHABLE, FRAGMENTATION_NEEDED, 1400).mtu, Some(1400));
        assert_eq!(icmp_error(false, UNREACHABLE, FRAGMENTATION_NEEDED, 0).mtu, None, "routers before RFC 1191");
        assert_eq!(icmp_error(true, PACKET_TOO_BIG_V6, 0, 1280).mtu, Some(1280));
        assert_eq!(icmp_error(false, UNREACHABLE, PORT_UNREACHABLE, 1400).mtu, None);
    }
}
