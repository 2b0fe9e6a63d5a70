//! Memory of sockets and its limits, from `/proc/net/sockstat` and `/proc/sys/net` (`net/ipv4/proc.c`,
//! `net/ipv4/sysctl_net_ipv4.c`).

use std::path::Path;

use netdiag_common::observation::socket::SocketMemory;
use nix::unistd::{SysconfVar, sysconf};

use crate::host::{ReadError, file, own_net};

const TEXT_BYTES: u64 = 16 * 1024;
const NUMBER_BYTES: u64 = 128;

/// Limits that hold for the whole kernel, and that only its first namespace shows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    tcp_pages: Option<[u64; 3]>,
    udp_pages: Option<[u64; 3]>,
    orphans: Option<u64>,
}

impl Limits {
    /// To be called before the thread enters a pod's namespace. None where the calling thread's does not show it.
    pub(crate) fn read(proc: &Path) -> Result<Self, ReadError> {
        Ok(Self {
            tcp_pages: numbers(proc, "tcp_mem")?,
            udp_pages: numbers(proc, "udp_mem")?,
            orphans: numbers(proc, "tcp_max_orphans")?.map(|[orphans]| orphans),
        })
    }
}

/// The calling thread's namespace.
pub(super) fn read(proc: &Path, limits: &Limits) -> Result<SocketMemory, ReadError> {
    let mut memory = SocketMemory {
        page_bytes: sysconf(SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .and_then(|bytes| u64::try_from(bytes).ok())
            .unwrap_or(4_096),
        tcp_limit_pages: limits.tcp_pages,
        udp_limit_pages: limits.udp_pages,
        orphan_limit: limits.orphans,
        time_wait_limit: numbers(proc, "tcp_max_tw_buckets")?.map(|[buckets]| buckets),
        ..SocketMemory::default()
    };
    parse(&file::text(&own_net().join("sockstat"), TEXT_BYTES)?, &mut memory);
    // Not there without IPv6.
    if let Some(text) = file::text_if_there(&own_net().join("sockstat6"), TEXT_BYTES)? {
        parse(&text, &mut memory);
    }
    Ok(memory)
}

/// `PROTOCOL: word number word number …`
fn parse(text: &str, memory: &mut SocketMemory) {
    for line in text.lines() {
        let Some((protocol, rest)) = line.split_once(':') else { continue };
        let words: Vec<&str> = rest.split_ascii_whitespace().collect();
        for pair in words.chunks_exact(2) {
            let Ok(number) = pair[1].parse::<u64>() else { continue };
            match (protocol, pair[0]) {
                ("TCP", "mem") => memory.tcp_pages = number,
                ("TCP", "orphan") => memory.orphans = number,
                ("TCP", "tw") => memory.time_wait = number,
                ("UDP", "mem") => memory.udp_pages = number,
                ("FRAG" | "FRAG6", "memory") => {
                    memory.fragment_bytes = memory.fragment_bytes.saturating_add(number);
                }
                _ => {}
            }
        }
    }
}

/// Numbers of a sysctl below net/ipv4. None when it is not there, or has another shape.
fn numbers<const N: usize>(proc: &Path, name: &str) -> Result<Option<[u64; N]>, ReadError> {
    let text = file::text_if_there(&proc.join("sys/net/ipv4").join(name), NUMBER_BYTES)?;
    let parsed = |text: String| {
        let numbers: Vec<u64> = text.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
        numbers.try_into().ok()
    };
    Ok(text.and_then(parsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dump_of_linux_6_18() {
        let mut memory = SocketMemory::default();
        parse(include_str!("../../../tests/fixtures/host/sockstat"), &mut memory);
        parse(include_str!("../../../tests/fixtures/host/sockstat6"), &mut memory);
        let text = "sockets: used 18\nTCP: inuse 2 orphan 3 tw 4 alloc 2 mem 5\nUDP: inuse 0 mem 6\nFRAG: inuse 1 memory 7\nFRAG6: inuse 1 memory 8\n";
        parse(text, &mut memory);
        let found = (memory.tcp_pages, memory.orphans, memory.time_wait, memory.udp_pages, memory.fragment_bytes);
        assert_eq!(found, (5, 3, 4, 6, 15));
    }

    #[test]
    fn limits_of_this_machine() {
        let proc = Path::new("/proc");
        let memory = read(proc, &Limits::read(proc).unwrap()).unwrap();
        assert!(memory.page_bytes >= 4_096 && memory.time_wait_limit.is_some());
        if let Some([low, pressure, high]) = memory.tcp_limit_pages {
            assert!(low <= pressure && pressure <= high);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends(text in ".{0,400}") {
            parse(&text, &mut SocketMemory::default());
        }
    }
}
