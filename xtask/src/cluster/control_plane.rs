//! etcd, the API server, the controllers and the scheduler, all in one network namespace.

use std::time::Duration;

use anyhow::Result;

use super::Cluster;
use super::address::{POD_RANGE, POD_RANGE_V6, SERVICE_RANGE, SERVICE_RANGE_V6};
use crate::command;

/// It takes 3 s on two idle cores; a machine that also compiles needs more.
const API_SERVER_LIMIT: Duration = Duration::from_secs(90);

/// Starts everything and returns when the API server is ready.
pub(super) fn start(cluster: &Cluster) -> Result<()> {
    let address = cluster.subnet.control_plane();
    let path = |name: &str| cluster.folder.join(name).display().to_string();
    let pki = |name: &str| path(&format!("pki/{name}"));
    let both = |v4: &str, v6: &str| if cluster.options.dual_stack { format!("{v4},{v6}") } else { v4.to_owned() };
    let services = both(SERVICE_RANGE, SERVICE_RANGE_V6);
    let entry = command::words(&["nsenter", &format!("--net={}", cluster.netns_of("cp").display()), "--"]);
    let start = |component: &str, program: &str, flags: &[String]| cluster.spawn(component, &entry, program, flags);

    start(
        "etcd",
        "etcd",
        &[
            format!("--data-dir={}", path("etcd")),
            // The cluster does not outlive the machine, and two cores have better things to do.
            "--unsafe-no-fsync".to_owned(),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--log-level=warn".to_owned(),
        ],
    )?;
    start(
        "apiserver",
        "kube-apiserver",
        &[
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--service-cluster-ip-range={services}"),
            format!("--bind-address={address}"),
            format!("--advertise-address={address}"),
            format!("--client-ca-file={}", pki("ca.crt")),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            format!("--service-account-key-file={}", pki("accounts.pub")),
            format!("--service-account-signing-key-file={}", pki("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--kubelet-client-certificate={}", pki("kubelet-client.crt")),
            format!("--kubelet-client-key={}", pki("kubelet-client.key")),
            format!("--kubelet-certificate-authority={}", pki("ca.crt")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
        ],
    )?;
    cluster.wait("apiserver", "answer from the API server", API_SERVER_LIMIT, || {
        cluster.kubectl(&["get", "--raw", "/readyz"]).is_ok()
    })?;
    start(
        "controller-manager",
        "kube-controller-manager",
        &[
            format!("--kubeconfig={}", path("controller-manager.conf")),
            format!("--service-account-private-key-file={}", pki("accounts.key")),
            format!("--root-ca-file={}", pki("ca.crt")),
            format!("--cluster-signing-cert-file={}", pki("ca.crt")),
            format!("--cluster-signing-key-file={}", pki("ca.key")),
            "--use-service-account-credentials".to_owned(),
            // Node objects are created with the ranges that the nodes' CNI configuration has.
            "--allocate-node-cidrs=false".to_owned(),
            "--leader-elect=false".to_owned(),
            format!("--service-cluster-ip-range={services}"),
            format!("--cluster-cidr={}", both(POD_RANGE, POD_RANGE_V6)),
        ],
    )?;
    start(
        "scheduler",
        "kube-scheduler",
        &[format!("--kubeconfig={}", path("scheduler.conf")), "--leader-elect=false".to_owned()],
    )
}
