//! The agent's command line.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args as _, CommandFactory as _, FromArgMatches as _, Parser};
use netdiag_common::wire::AGENT_PORT;

use crate::kernel::Uprobes;
use crate::metrics::{METRICS_PORT, otlp};
use crate::probe::series::{AllowList, sockets};
use crate::report;
use crate::shed::Budget;

/// What the program is asked for: an agent unless the first word is another task.
#[derive(Debug, Clone)]
pub enum Task {
    Agent(Box<Config>),
    Preflight(report::Arguments),
    /// Makes sockets for an agent that started it.
    Sockets(sockets::Arguments),
}

impl Task {
    /// Of the whole command line, the program's name first. The error also holds the help that was asked for.
    pub fn of(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let preflight = clap::Command::new("preflight")
            .about("Print what this kernel and these rights allow, what is lost without the rest, and the remedy");
        let command = Config::command()
            .subcommand(report::Arguments::augment_args(preflight))
            .subcommand(sockets::Arguments::augment_args(clap::Command::new(sockets::TASK).hide(true)))
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true);
        let matches = command.try_get_matches_from(words)?;
        match matches.subcommand() {
            Some((sockets::TASK, arguments)) => sockets::Arguments::from_arg_matches(arguments).map(Self::Sockets),
            Some((_, preflight)) => report::Arguments::from_arg_matches(preflight).map(Self::Preflight),
            None => Config::from_arg_matches(&matches).map(|config| Self::Agent(Box::new(config))),
        }
    }
}

/// Sees one node's network and answers netdiag's server over mTLS.
#[derive(Debug, Clone, Parser)]
#[command(name = "netdiag-node", version)]
pub struct Config {
    /// Kubernetes name of this node
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Address to listen on, usually the node's, with or without a port: 10.0.0.7, 10.0.0.7:9443, `[fd00::7]:9443`
    #[arg(long, env = "NETDIAG_LISTEN", value_parser = agent_address)]
    pub listen: SocketAddr,
    /// Folder with ca.crt, node.crt and node.key
    #[arg(long, env = "NETDIAG_TLS_DIR")]
    pub tls_dir: PathBuf,
    /// The node's network namespace, when it is not the agent's own
    #[arg(long, default_value = "/proc/self/ns/net")]
    pub host_netns: PathBuf,
    /// The kubelet's cgroupRoot, when the agent's own pod does not tell it: on machines that run several nodes
    #[arg(long)]
    pub cgroup_root: Option<String>,
    /// Serve Prometheus metrics on this address, without authentication: 127.0.0.1, 127.0.0.1:9444
    #[arg(long, env = "NETDIAG_METRICS_LISTEN", value_parser = metrics_address)]
    pub metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub otlp: otlp::Settings,
    #[command(flatten)]
    pub budget: Budget,
    /// A proc filesystem that shows the node's processes
    #[arg(long, default_value = "/proc")]
    pub proc: PathBuf,
    /// Ports that DNS servers listen on, where it is not 53 alone; at most four: 53,5353
    #[arg(long, env = "NETDIAG_DNS_PORTS", value_delimiter = ',', num_args = 1..=4, default_values_t = [53])]
    pub dns_ports: Vec<u16>,
    /// Probe libraries of pods' processes, at a cost for each call: getaddrinfo (names looked up), tls (OpenSSL clients' handshakes)
    #[arg(long, env = "NETDIAG_UPROBES", value_parser = uprobes, default_value = "")]
    pub uprobes: Uprobes,
    /// Let the server trace a few packets of one connection by rules that it adds for at most 30 seconds: off, since nothing
    /// else of the agent changes anything
    #[arg(long, env = "NETDIAG_ALLOW_TRACE")]
    pub allow_trace: bool,
    /// Networks that probes may be sent to beside the cluster's (loopback, private and link-local ones): 203.0.113.0/24,2001:db8::/32
    #[arg(long, env = "NETDIAG_PROBE_ALLOW", value_parser = AllowList::parse, default_value = "")]
    pub probe_allow: AllowList,
    /// Let the server ask for throughput probes, which fill a link for at most ten seconds, one at a time: off, since pods use
    /// the same links
    #[arg(long, env = "NETDIAG_PROBE_THROUGHPUT")]
    pub probe_throughput: bool,
    /// Make the sockets of a pod's probes in its control group where BPF programs are attached that other sockets do not pass: off,
    /// since a tiny process is in the pod's group meanwhile
    #[arg(long, env = "NETDIAG_PROBE_JOIN_CGROUP")]
    pub probe_join_cgroup: bool,
}

/// Names with commas between them; none is none.
fn uprobes(text: &str) -> Result<Uprobes, String> {
    let mut wanted = Uprobes::default();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name {
            "getaddrinfo" => wanted.getaddrinfo = true,
            "tls" => wanted.tls = true,
            other => return Err(format!("expected getaddrinfo or tls, found {other:?}")),
        }
    }
    Ok(wanted)
}

fn agent_address(text: &str) -> Result<SocketAddr, String> {
    listen_address(text, AGENT_PORT)
}

fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    listen_address(text, METRICS_PORT)
}

fn listen_address(text: &str, port: u16) -> Result<SocketAddr, String> {
    let with_port = text.parse::<SocketAddr>();
    let without_port = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, port));
    with_port.or(without_port).map_err(|_| "expected ADDRESS or ADDRESS:PORT, IPv6 with a port in brackets".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(words: &str) -> Result<Task, clap::Error> {
        Task::of(words.split(' ').map(OsString::from))
    }

    #[test]
    fn without_a_task_it_is_the_agent() {
        let agent = task("netdiag-node --node-name n1 --listen 10.0.0.7 --tls-dir /tls").unwrap();
        assert!(matches!(agent, Task::Agent(config) if config.node_name == "n1"));
        let preflight = task("netdiag-node preflight -o json").unwrap();
        assert!(matches!(preflight, Task::Preflight(arguments) if arguments.output == report::Output::Json));
        assert!(task("netdiag-node --node-name n1").is_err());
        assert!(task("netdiag-node --node-name n1 preflight").is_err());
    }

    #[test]
    fn uprobes_are_off_unless_named() {
        let agent = |more: &str| task(&format!("netdiag-node --node-name n1 --listen 10.0.0.7 --tls-dir /tls{more}"));
        let wanted = |more: &str| match agent(more) {
            Ok(Task::Agent(config)) => config.uprobes,
            other => panic!("{other:?}"),
        };
        assert_eq!(wanted(""), Uprobes::default());
        assert_eq!(wanted(" --uprobes tls"), Uprobes { getaddrinfo: false, tls: true });
        assert_eq!(wanted(" --uprobes getaddrinfo,tls"), Uprobes { getaddrinfo: true, tls: true });
        assert!(agent(" --uprobes gethostbyname").unwrap_err().to_string().contains("getaddrinfo or tls"));
    }

    #[test]
    fn port_has_a_default() {
        for (text, expected) in [
            ("10.0.0.7", "10.0.0.7:9443"),
            ("10.0.0.7:1", "10.0.0.7:1"),
            ("fd00::7", "[fd00::7]:9443"),
            ("[fd00::7]:1", "[fd00::7]:1"),
        ] {
            assert_eq!(agent_address(text).unwrap().to_string(), expected);
        }
        assert_eq!(metrics_address("127.0.0.1").unwrap().to_string(), "127.0.0.1:9444");
        assert!(agent_address("node-1").unwrap_err().contains("brackets"));
    }
}
