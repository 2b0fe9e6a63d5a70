//! BPF programs and tc filters at the devices that a packet comes in by or leaves by, and at the groups of processes that
//! send or receive it.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use netdiag_common::forwarding::packet::{Protocol, TCP, UDP};
use nix::sys::socket::SockProtocol;

use super::tc::{self, Filter, Side};
use super::{Found, Surroundings};
use crate::host::bpf::{self, Attach, Target};
use crate::host::netlink::{Netlink, attributes, int, string};
use crate::host::{ReadError, cgroup, file, process};

const IFLA_XDP: u16 = 43;
// Nested in it: how the program is attached (`XDP_ATTACHED_*`), and its ids (IFLA_XDP_*).
const XDP_ATTACHED: u16 = 2;
const XDP_IDS: [u16; 4] = [4, 5, 6, 7];

/// Groups of one pod's processes that are looked at: one per container.
const MAX_GROUPS: usize = 64;

/// A device, and what of it is asked here.
struct Device {
    index: u32,
    name: String,
    kind: String,
    /// The device below: of VLANs, macvlans and tunnels.
    below: Option<u32>,
    xdp: Vec<u32>,
    /// How: `native`, `generic`, `offloaded`.
    xdp_mode: &'static str,
}

/// Devices that lie on each other: a VLAN on a bond on a port.
const MAX_BELOW: usize = 4;

/// What runs at a device for packets that come in or leave by it, and at those below.
pub(super) fn at_interface(
    index: u32,
    side: Side,
    around: &Surroundings<'_>,
    found: &mut Vec<Found>,
) -> Result<(), ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let mut next = Some(index);
    for _ in 0..MAX_BELOW {
        let Some(device) = next.map(|index| device(&mut netlink, index)).transpose()?.flatten() else { break };
        at_device(&mut netlink, &device, side, around, found)?;
        next = device.below.filter(|below| *below != device.index);
    }
    Ok(())
}

fn at_device(
    netlink: &mut Netlink,
    device: &Device,
    side: Side,
    around: &Surroundings<'_>,
    found: &mut Vec<Found>,
) -> Result<(), ReadError> {
    let name = &device.name;
    let (tcx, word) = match side {
        Side::Ingress => (Attach::TcxIngress, "ingress"),
        Side::Egress => (Attach::TcxEgress, "egress"),
    };
    if side == Side::Ingress {
        for id in &device.xdp {
            found.extend(program(*id, "", &format!("{} XDP of {name}", device.xdp_mode), around));
        }
    }
    for id in bpf::attached(Target::Interface(device.index), tcx)? {
        found.extend(program(id, "", &format!("tcx {word} of {name}"), around));
    }
    for filter in tc::filters(netlink, device.index, side)? {
        let what = match filter {
            Filter::Program { id: Some(id), name: given } => {
                found.extend(program(id, &given, &format!("tc {word} of {name}"), around));
                continue;
            }
            Filter::Program { id: None, .. } => format!("classic BPF filter at tc {word} of {name}"),
            Filter::Other { kind, actions } => format!("filter {kind} ({}) at tc {word} of {name}", actions.join(", ")),
        };
        found.push(Found {
            what,
            why: "tc filters are not evaluated: it may drop, change or redirect the packet".to_owned(),
            remedy: format!("`tc -s filter show dev {name} {word}` shows what it matches and how often it did"),
        });
    }
    if device.kind == "netkit" {
        // What leaves by this end is handled by its own program; what arrives was, by that of the other end.
        let attach = if side == Side::Egress { Attach::NetkitPrimary } else { Attach::NetkitPeer };
        for id in bpf::attached(Target::Interface(device.index), attach)? {
            found.extend(program(id, "", &format!("netkit {word} of {name}"), around));
        }
    }
    Ok(())
}

/// None for the agent's own programs.
fn program(id: u32, given: &str, place: &str, around: &Surroundings<'_>) -> Option<Found> {
    if (around.is_own)(id) { None } else { Some(named(id, given, place)) }
}

fn named(id: u32, given: &str, place: &str) -> Found {
    // A program that is gone by now, or may not be looked at, is told by its id.
    let loaded = bpf::name(id).unwrap_or_default();
    let name = if loaded.is_empty() { given } else { &loaded };
    let whose = owner(&loaded).or_else(|| owner(given));
    let of = whose.map(|(owner, _)| format!(", of {owner}")).unwrap_or_default();
    let remedy = match whose {
        Some((_, remedy)) => remedy.to_owned(),
        None => format!(
            "`bpftool prog show id {id}` on that node tells who loaded it; trace the packet to see what it does"
        ),
    };
    Found {
        what: format!(
            "BPF program {}(id {id}{of}) at {place}",
            if name.is_empty() { String::new() } else { format!("{name} ") }
        ),
        why: "BPF programs are not evaluated: it may drop, change or redirect the packet".to_owned(),
        remedy,
    }
}

/// Who gives such names to programs, and whom to ask what they do. The kernel keeps 15 bytes of a name.
fn owner(name: &str) -> Option<(&'static str, &'static str)> {
    const KNOWN: [(&[&str], &str, &str); 3] = [
        (
            &["cil_", "handle_policy", "tail_handle_"],
            "Cilium",
            "ask Cilium's agent on that node: `cilium-dbg monitor --type drop --type trace`, `cilium-dbg service list`, \
             `cilium-dbg bpf policy get --all`",
        ),
        (
            &["cali_", "calico_"],
            "Calico",
            "ask Calico's pod on that node: `calico-node -bpf nat dump`, `calico-node -bpf policy dump INTERFACE all`, \
             `calico-node -bpf counters dump`",
        ),
        (
            &["sd_fw_", "sd_devices", "sd_restrict"],
            "systemd",
            "see IPAddressAllow and IPAddressDeny of the unit: `systemctl show UNIT`",
        ),
    ];
    let known = KNOWN.iter().find(|(prefixes, ..)| prefixes.iter().any(|prefix| name.starts_with(prefix)));
    known.map(|(_, owner, remedy)| (*owner, *remedy))
}

/// A socket's packet, as the programs of its group see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Socket {
    Sends,
    Receives,
}

/// A place of a control group where programs decide about a packet, or about the connection that it belongs to.
struct GroupPlace {
    attach: Attach,
    name: &'static str,
    /// What a program there may do.
    may: &'static str,
}

const MAY_DROP: &str = "drop or change the packet";

impl GroupPlace {
    const INGRESS: Self = Self { attach: Attach::CgroupIngress, name: "ingress", may: MAY_DROP };
    const EGRESS: Self = Self { attach: Attach::CgroupEgress, name: "egress", may: MAY_DROP };
    const CREATE: Self = Self {
        attach: Attach::SocketCreate,
        name: "sock_create",
        may: "refuse the socket, or give it a mark, a priority or a device",
    };
    const OPERATIONS: Self = Self {
        attach: Attach::SocketOperations,
        name: "sock_ops",
        may: "change the mark, the options and the congestion control of the connection",
    };

    fn connect(ipv4: bool) -> Self {
        let (attach, name) = if ipv4 { (Attach::Connect4, "connect4") } else { (Attach::Connect6, "connect6") };
        Self { attach, name, may: "refuse the connection, or lead it to another address" }
    }

    fn send(ipv4: bool) -> Self {
        let (attach, name) = if ipv4 { (Attach::SendMessage4, "sendmsg4") } else { (Attach::SendMessage6, "sendmsg6") };
        Self { attach, name, may: "refuse the datagram, or send it to another address" }
    }

    fn receive(ipv4: bool) -> Self {
        let (attach, name) =
            if ipv4 { (Attach::ReceiveMessage4, "recvmsg4") } else { (Attach::ReceiveMessage6, "recvmsg6") };
        Self { attach, name, may: "tell the process another sender than the packet has, to whom it then answers" }
    }

    /// Where a packet of this kind is decided about. Not asked for, since they decide about no packet: `bind`, `post_bind`
    /// and `setsockopt` (a socket has its address, port and mark by now), `getpeername`, `getsockname` and `getsockopt`
    /// (what a process is told of its socket), `sock_release` and `sysctl`.
    fn of(socket: Socket, ipv4: bool, transport: u8) -> Vec<Self> {
        let is_tcp = transport == TCP;
        let is_udp = transport == UDP;
        let mut places = Vec::new();
        match socket {
            Socket::Sends => {
                places.push(Self::CREATE);
                places.extend((is_tcp || is_udp).then(|| Self::connect(ipv4)));
                places.extend(is_tcp.then_some(Self::OPERATIONS));
                places.extend(is_udp.then(|| Self::send(ipv4)));
                places.push(Self::EGRESS);
            }
            Socket::Receives => {
                places.push(Self::INGRESS);
                places.extend(is_tcp.then_some(Self::OPERATIONS));
                places.extend(is_udp.then(|| Self::receive(ipv4)));
            }
        }
        places
    }

    fn at(&self, group: &str) -> String {
        format!("{} of control group {group}", self.name)
    }

    fn because(&self) -> String {
        format!("BPF programs are not evaluated: it may {}", self.may)
    }
}

/// What runs at the groups of the namespace's processes. For a node only what runs for all of its processes: which of
/// them it is, is not known.
pub(super) fn at_groups(
    socket: Socket,
    (protocol, transport): (Protocol, u8),
    around: &Surroundings<'_>,
    found: &mut Vec<Found>,
) -> Result<(), ReadError> {
    let places = GroupPlace::of(socket, protocol == Protocol::Ipv4, transport);
    let mut told = BTreeSet::new();
    for (group, name) in groups(around)? {
        for place in &places {
            for id in bpf::attached(Target::File(group.as_fd()), place.attach)? {
                if told.insert((id, place.name)) {
                    let program = program(id, "", &place.at(&name), around);
                    found.extend(program.map(|program| Found { why: place.because(), ..program }));
                }
            }
        }
    }
    Ok(())
}

/// What runs at groups of processes, and not at the group of this one.
pub(super) struct Beside {
    /// Each once, with whether it runs at `group`.
    pub(super) programs: Vec<(Found, bool)>,
    /// Folder of the group where most of them run; none where there are none.
    pub(super) group: Option<PathBuf>,
}

/// What runs at the groups of these processes, and not at the group of this one. `ports`: for TCP and UDP, too.
pub(super) fn beside_our_own(
    proc: &Path,
    pids: &[u32],
    ports: bool,
    is_own: &dyn Fn(u32) -> bool,
) -> Result<Beside, ReadError> {
    let mut places = vec![GroupPlace::CREATE, GroupPlace::EGRESS, GroupPlace::INGRESS];
    if ports {
        places.push(GroupPlace::OPERATIONS);
        for ipv4 in [true, false] {
            places.extend([GroupPlace::connect(ipv4), GroupPlace::send(ipv4), GroupPlace::receive(ipv4)]);
        }
    }
    let attached = |group: &File| -> Result<BTreeSet<(u32, &'static str)>, ReadError> {
        let mut all = BTreeSet::new();
        for place in &places {
            let ids = bpf::attached(Target::File(group.as_fd()), place.attach)?;
            all.extend(ids.into_iter().map(|id| (id, place.name)));
        }
        Ok(all)
    };
    let root = cgroup::root()?;
    let ours = process::own_unified_group(proc).unwrap_or_default();
    let ours = attached(&file::open(&below(root, &ours))?)?;
    let paths: BTreeSet<String> = pids.iter().filter_map(|pid| process::unified_group(proc, *pid)).collect();
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    let mut groups = Vec::new();
    for path in paths.iter().take(MAX_GROUPS) {
        let folder = below(root, path);
        // One that is gone has no processes any more.
        let Ok(group) = file::open(&folder) else { continue };
        let mut there = attached(&group)?;
        there.retain(|program| !ours.contains(program) && !is_own(program.0));
        for (id, place) in &there {
            if told.insert((*id, *place)) {
                found.push(((*id, *place), named(*id, "", &format!("{place} of control group {path}"))));
            }
        }
        groups.push((folder, there));
    }
    let (group, there) = groups.into_iter().min_by_key(|(_, there)| Reverse(there.len())).unzip();
    let there = there.unwrap_or_default();
    let programs: Vec<_> = found.into_iter().map(|(program, found)| (found, there.contains(&program))).collect();
    Ok(Beside { group: group.filter(|_| !programs.is_empty()), programs })
}

fn below(root: &Path, group: &str) -> PathBuf {
    root.join(group.trim_start_matches('/'))
}

/// Programs that choose the socket for what is delivered (`BPF_PROG_TYPE_SK_LOOKUP`).
pub(super) fn at_socket_lookup(around: &Surroundings<'_>, found: &mut Vec<Found>) -> Result<(), ReadError> {
    let namespace = file::open(Path::new("/proc/thread-self/ns/net"))?;
    let ids = bpf::attached(Target::File(namespace.as_fd()), Attach::SocketLookup)?;
    found.extend(ids.into_iter().filter_map(|id| program(id, "", "the lookup of sockets", around)));
    Ok(())
}

fn groups(around: &Surroundings<'_>) -> Result<Vec<(File, String)>, ReadError> {
    let root = cgroup::root()?;
    let mut paths = BTreeSet::new();
    if around.is_pod {
        for pid in process::in_netns(around.proc, around.netns)? {
            paths.extend(process::unified_group(around.proc, pid));
            if paths.len() >= MAX_GROUPS {
                break;
            }
        }
    }
    if paths.is_empty() {
        paths.insert("/".to_owned());
    }
    let mut groups = Vec::new();
    for path in paths {
        // One that is gone has no processes any more.
        if let Ok(group) = file::open(&below(root, &path)) {
            groups.push((group, path));
        }
    }
    Ok(groups)
}

fn device(netlink: &mut Netlink, index: u32) -> Result<Option<Device>, ReadError> {
    let mut request = vec![0; 16];
    request[4..8].copy_from_slice(&index.to_ne_bytes());
    match netlink.get(libc::RTM_GETLINK, &request, &format!("read link {index}"), parse) {
        Err(ReadError::Call { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        found => found,
    }
}

/// `struct ifinfomsg` and its attributes.
fn parse(payload: &[u8]) -> Option<Device> {
    let index = int(payload, 4)?;
    let mut device =
        Device { index, name: String::new(), kind: String::new(), below: None, xdp: Vec::new(), xdp_mode: "" };
    let mut elsewhere = false;
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => device.name = string(value),
            libc::IFLA_LINK => device.below = int(value, 0),
            super::IFLA_LINK_NETNSID => elsewhere = true,
            libc::IFLA_LINKINFO => {
                let name = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                device.kind = name.map(|(_, name)| string(name)).unwrap_or_default();
            }
            IFLA_XDP => {
                for (kind, value) in attributes(value) {
                    if kind == XDP_ATTACHED {
                        device.xdp_mode = match value.first() {
                            Some(1) => "native",
                            Some(2) => "generic",
                            Some(3) => "offloaded",
                            _ => "several",
                        };
                    } else if let (true, Some(id)) = (XDP_IDS.contains(&kind), int(value, 0)) {
                        device.xdp.push(id);
                    }
                }
                device.xdp.sort_unstable();
                device.xdp.dedup();
            }
            _ => {}
        }
    }
    // For pairs IFLA_LINK is the other end.
    if elsewhere || matches!(&*device.kind, "veth" | "netkit") {
        device.below = None;
    }
    Some(device)
}
