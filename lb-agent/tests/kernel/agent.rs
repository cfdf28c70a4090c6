//! The program itself.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use lb_agent::dataplane::Loads;
use lb_common::abi::{Load, LocalAddressFlags};
use nix::libc;

use crate::sandbox::{self, Elsewhere, Sandbox, command, ip};

const AGENT: &str = env!("CARGO_BIN_EXE_lb-agent");
/// Where every sandbox may listen.
const HEALTH: &str = "127.0.0.1:10256";
/// All that the agent needs.
const PRIVILEGES: &str = "-all,+bpf,+net_admin,+perfmon";

/// An agent that is killed, and not asked, when it is dropped.
pub(crate) struct Agent(Child);

impl Agent {
    pub(crate) fn start(sandbox: &Sandbox, wrapper: &[&str], more: &[&str]) -> Self {
        let more = more.iter().map(ToString::to_string);
        Self::spawn(sandbox, wrapper, flags(sandbox).into_iter().chain(more))
    }

    /// An agent of a cluster whose API server is away.
    pub(crate) fn start_without_api_server(sandbox: &Sandbox) -> Self {
        let kubeconfig = sandbox.dir.join("kubeconfig");
        fs::write(
            &kubeconfig,
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
             users: [{name: u, user: {token: t}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n",
        )
        .expect("written");
        let mut arguments = vec!["--kubeconfig".to_owned(), kubeconfig.display().to_string()];
        arguments.extend(flags(sandbox).into_iter().filter(|flag| !flag.contains("manifests")));
        Self::spawn(sandbox, &[], arguments)
    }

    fn spawn(sandbox: &Sandbox, wrapper: &[&str], flags: impl IntoIterator<Item = String>) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(sandbox.dir.join("log")).expect("a log");
        let mut line: Vec<_> = wrapper.iter().map(ToString::to_string).collect();
        line.extend([AGENT.to_owned(), "run".to_owned()]);
        line.extend(flags);
        let child = Command::new(&line[0]).args(&line[1..]).stderr(Stdio::from(log)).spawn().expect("the agent");
        Self(child)
    }

    pub(crate) fn signal(&mut self, signal: libc::c_int) -> std::process::ExitStatus {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.0.id().cast_signed(), signal) };
        self.0.wait().expect("it ends")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn flags(sandbox: &Sandbox) -> Vec<String> {
    let flag = |name: &str, path: &Path| [format!("--{name}"), path.display().to_string()];
    let mut flags = vec!["--hostname-override=node-a".to_owned(), format!("--healthz-bind-address={HEALTH}")];
    flags.extend(flag("manifests", &sandbox.dir.join("manifests")));
    flags.extend(flag("bpffs", &sandbox.bpffs));
    flags.extend(flag("cgroup", &sandbox.cgroup));
    // Smaller tables are made faster.
    flags.extend(["--service-table-size=1024".to_owned(), "--flow-table-size=1024".to_owned()]);
    flags
}

pub(crate) fn lb_agent(arguments: &[&str]) -> Output {
    Command::new(AGENT).args(arguments).output().expect("the agent")
}

/// What a list command prints, as JSON, of the sandbox's data plane.
pub(crate) fn show(sandbox: &Sandbox, arguments: &[&str]) -> serde_json::Value {
    let bpffs = sandbox.bpffs.display().to_string();
    let output = lb_agent(&[arguments, &["-o", "json", "--bpffs", &bpffs]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

pub(crate) fn log(sandbox: &Sandbox) -> String {
    fs::read_to_string(sandbox.dir.join("log")).unwrap_or_default()
}

/// How long to wait for what must come: many times what it takes on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
pub(crate) fn until(sandbox: &Sandbox, what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}\n{}", log(sandbox));
        thread::sleep(Duration::from_millis(10));
    }
}

/// What `/healthz` answers; empty where nobody listens.
fn answer() -> String {
    get(HEALTH, "/healthz")
}

/// What a server answers; empty where nobody listens.
pub(crate) fn get(address: &str, path: &str) -> String {
    let mut answer = String::new();
    let asked = TcpStream::connect(address).and_then(|mut stream| {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
        stream.read_to_string(&mut answer)
    });
    asked.map(|_| answer).unwrap_or_default()
}

pub(crate) fn healthy() -> bool {
    answer().starts_with("HTTP/1.1 200")
}

pub(crate) fn write_manifest(sandbox: &Sandbox, endpoints: &[&str]) {
    let dir = sandbox.dir.join("manifests");
    fs::create_dir_all(&dir).expect("a directory");
    let endpoints = endpoints.iter().map(|address| format!("- {{addresses: [{address}], nodeName: node-a}}\n"));
    let endpoints = endpoints.collect::<Vec<_>>().concat();
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\n\
         spec:\n  clusterIP: 10.96.0.10\n  clusterIPs: [10.96.0.10]\n  type: NodePort\n  ports: [{{name: http, port: 80, nodePort: 30080}}]\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n{endpoints}"
    );
    let part = dir.join(".part");
    fs::write(&part, text).expect("written");
    fs::rename(part, dir.join("web.yaml")).expect("renamed");
}

/// The node's NIC and the network beyond.
pub(crate) fn make_uplink_to(outside: &Elsewhere) {
    outside.pair("eth0");
    ip("link set eth0 up");
    ip("addr add 10.0.0.1/24 dev eth0");
    for arguments in ["link set peth0 up", "addr add 10.0.0.254/24 dev peth0"] {
        assert!(outside.run("ip", arguments).status.success());
    }
    ip("route add default via 10.0.0.254");
}

pub(crate) fn make_uplink() {
    ip("link add eth0 type veth peer name far0");
    ip("link set eth0 up");
    ip("link set far0 up");
    ip("addr add 10.0.0.1/24 dev eth0");
    ip("route add default via 10.0.0.254");
}

pub(crate) fn an_agent_that_was_killed_leaves_a_data_plane_that_the_next_one_adopts() {
    sandbox::run(|sandbox| {
        make_uplink();
        write_manifest(sandbox, &["10.244.0.5", "10.244.0.6"]);
        let mut agent = Agent::start(sandbox, &[], &[]);
        until(sandbox, "healthy", healthy);
        let backends = show(sandbox, &["backend", "list"]);
        let services = show(sandbox, &["service", "list"]);
        assert_eq!(backends["items"].as_array().map(Vec::len), Some(2), "{backends}");
        assert_eq!(services["items"][0]["service"], "default/web:http/TCP");
        assert_eq!(services["items"][0]["frontends"][0]["address"], "10.96.0.10");

        agent.signal(libc::SIGKILL);
        let status = show(sandbox, &["status"]);
        assert_eq!(status["agent"], serde_json::Value::Null);
        assert_eq!(show(sandbox, &["backend", "list"]), backends);
        let held = |program: &str| {
            let hooks = show(sandbox, &["status"])["hooks"].as_array().expect("hooks").clone();
            hooks.iter().filter(|hook| hook["program"] == program).count()
        };
        assert_eq!((held("uplink_ingress"), held("uplink_egress"), held("connect4")), (1, 1, 1), "{status}");

        let mut agent = Agent::start(sandbox, &[], &[]);
        until(sandbox, "healthy again", healthy);
        assert_eq!(show(sandbox, &["backend", "list"]), backends);
        assert_eq!((held("uplink_ingress"), held("uplink_egress"), held("connect4")), (1, 1, 1));
        assert_eq!(show(sandbox, &["status"])["agent"], agent.0.id());

        // It is as alive as one that began with nothing.
        write_manifest(sandbox, &["10.244.0.6"]);
        until(sandbox, "one endpoint left", || {
            show(sandbox, &["service", "list"])["items"][0]["endpoints"] == serde_json::json!(["10.244.0.6:8080"])
        });
        assert!(agent.signal(libc::SIGTERM).success());
        assert!(log(sandbox).contains("the data plane stays"), "{}", log(sandbox));

        let bpffs = sandbox.bpffs.display().to_string();
        let cleanup = || {
            let cleaned = lb_agent(&["cleanup", "--bpffs", &bpffs]);
            assert!(cleaned.status.success(), "{cleaned:?}");
            String::from_utf8_lossy(&cleaned.stderr).into_owned()
        };
        assert_eq!(cleanup(), "");
        assert!(!sandbox.bpffs.join("lb").exists());
        let again = cleanup();
        assert!(again.starts_with(&format!("nothing of lb-agent's in {bpffs}/lb: ")), "{again}");
        let nothing = lb_agent(&["status", "--bpffs", &bpffs]);
        assert_eq!(nothing.status.code(), Some(1));
        let said = String::from_utf8_lossy(&nothing.stderr);
        assert!(said.contains("the agent has not run on this node"), "{said}");
    });
}

pub(crate) fn a_load_balancer_learns_which_node_has_endpoints() {
    sandbox::run(|sandbox| {
        let write = |policy: &str, node: &str| {
            fs::create_dir_all(sandbox.dir.join("manifests")).expect("a directory");
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: lb, namespace: default}}\n\
                 spec:\n  clusterIP: 10.96.0.20\n  type: LoadBalancer\n  externalTrafficPolicy: {policy}\n  \
                 healthCheckNodePort: 32000\n  ports: [{{name: http, port: 80, nodePort: 30081}}]\n\
                 ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: lb-1, namespace: default, labels: {{kubernetes.io/service-name: lb}}}}\n\
                 addressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
                 endpoints: [{{addresses: [10.244.0.5], nodeName: {node}}}]\n"
            );
            let part = sandbox.dir.join("manifests/.part");
            fs::write(&part, text).expect("written");
            fs::rename(part, sandbox.dir.join("manifests/lb.yaml")).expect("renamed");
        };
        write("Local", "node-a");
        let _agent = Agent::start(sandbox, &[], &[]);
        until(sandbox, "healthy", healthy);
        for address in ["127.0.0.1:32000", "[::1]:32000"] {
            until(sandbox, "200", || get(address, "/").starts_with("HTTP/1.1 200 OK"));
            assert!(get(address, "/").contains("X-Load-Balancing-Endpoint-Weight: 1\r\n"), "{}", get(address, "/"));
        }
        write("Local", "node-b");
        until(sandbox, "503", || get("127.0.0.1:32000", "/").starts_with("HTTP/1.1 503"));
        write("Cluster", "node-a");
        until(sandbox, "closed", || TcpStream::connect("127.0.0.1:32000").is_err());
        write("Local", "node-a");
        until(sandbox, "open again", || get("127.0.0.1:32000", "/").starts_with("HTTP/1.1 200 OK"));
        fs::remove_file(sandbox.dir.join("manifests/lb.yaml")).expect("removed");
        until(sandbox, "gone", || TcpStream::connect("127.0.0.1:32000").is_err());
    });
}

pub(crate) fn a_named_device_that_is_not_there_is_told_and_served_when_it_comes() {
    sandbox::run(|sandbox| {
        make_uplink();
        write_manifest(sandbox, &["10.244.0.5"]);
        let mut agent = Agent::start(sandbox, &[], &["--devices=eth0,eth7"]);
        until(sandbox, "healthy", healthy);
        let missing = || show(sandbox, &["status"])["missingDevices"].clone();
        let uplinks = || {
            let hooks = show(sandbox, &["status"])["hooks"].as_array().expect("hooks").clone();
            let of_uplink = hooks.into_iter().filter(|hook| hook["program"] == "uplink_ingress");
            of_uplink.map(|hook| hook["target"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
        };
        let told = || log(sandbox).matches("--devices eth7: there is no such device").count();
        until(sandbox, "told", || told() == 1);
        assert!(log(sandbox).contains("there are lo, ") && log(sandbox).contains("eth0"), "{}", log(sandbox));
        assert_eq!((missing(), uplinks()), (serde_json::json!(["eth7"]), vec!["eth0".to_owned()]));
        let gauge =
            |count: u32| get("127.0.0.1:10249", "/metrics").contains(&format!("\nlb_devices_missing {count}\n"));
        assert!(gauge(1));
        // All else is as with devices that are there.
        assert_eq!(show(sandbox, &["backend", "list"])["items"].as_array().map(Vec::len), Some(1));

        ip("link add eth7 type veth peer name far7");
        until(sandbox, "served", || uplinks().contains(&"eth7".to_owned()));
        until(sandbox, "not missing", || missing() == serde_json::json!([]) && gauge(0));
        ip("link del eth7");
        until(sandbox, "told again", || told() == 2 && missing() == serde_json::json!(["eth7"]));
        assert_eq!(uplinks(), ["eth0"]);

        assert!(agent.signal(libc::SIGTERM).success());
        let bpffs = sandbox.bpffs.display().to_string();
        let status = lb_agent(&["status", "--bpffs", &bpffs]);
        let text = String::from_utf8_lossy(&status.stdout);
        assert!(
            text.contains("\nError: --devices eth7: there is no such device, or none that can be served\n"),
            "{text}"
        );
        // None of them is no reason to end, either.
        let agent = Agent::start(sandbox, &[], &["--devices=eth8"]);
        until(sandbox, "healthy again", || healthy() && missing() == serde_json::json!(["eth8"]));
        until(sandbox, "eth0 is left", || uplinks().is_empty());
        drop(agent);
        let cleaned = lb_agent(&["cleanup", "--bpffs", &bpffs]);
        assert!(cleaned.status.success() && cleaned.stderr.is_empty(), "{cleaned:?}");
        assert!(!sandbox.bpffs.join("lb").exists());
    });
}

pub(crate) fn each_of_many_changes_and_rejections_is_a_line_of_the_log_with_its_name() {
    sandbox::run(|sandbox| {
        write_manifest(sandbox, &["10.244.0.5"]);
        let bad = |number| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: bad-{number}}}\n\
                 spec: {{clusterIP: 10.97.0.1, ports: [{{port: 70000}}]}}\n"
            )
        };
        let text: String = (0..500).map(bad).collect();
        fs::write(sandbox.dir.join("manifests/bad.yaml"), text).expect("written");
        let good = |number| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: good-{number}}}\n\
                 spec: {{clusterIP: 10.98.{}.{}, ports: [{{name: http, port: 80}}]}}\n",
                number / 250,
                1 + number % 250
            )
        };
        let text: String = (0..500).map(good).collect();
        fs::write(sandbox.dir.join("manifests/good.yaml"), text).expect("written");
        let _agent = Agent::start(sandbox, &[], &[]);
        until(sandbox, "healthy", healthy);
        let log_text = log(sandbox);
        for number in 0..500 {
            let lines = |level: &str, what: &str| {
                log_text.lines().filter(|line| line.contains(level) && line.contains(what)).count()
            };
            let rejected = format!("rejected: Service default/bad-{number} in bad.yaml:{} ", 2 + 5 * number);
            let rejected = format!("{rejected}(document {}): spec.ports[0].port: is 70000", number + 1);
            assert_eq!(lines(" WARN ", &rejected), 1, "{rejected}\n{log_text}");
            let added = format!("added service=default/good-{number}:http/TCP family=\"IPv4\" frontends=1");
            assert_eq!(lines(" INFO ", &added), 1, "{added}\n{log_text}");
        }
        // It is as alive as with none.
        write_manifest(sandbox, &["10.244.0.6"]);
        until(sandbox, "the endpoint changed", || {
            show(sandbox, &["service", "list"])["items"].as_array().expect("a list").iter().any(|item| {
                item["service"] == "default/web:http/TCP" && item["endpoints"] == serde_json::json!(["10.244.0.6:8080"])
            })
        });
    });
}

pub(crate) fn pods_get_their_programs_as_they_come() {
    sandbox::run(|sandbox| {
        write_manifest(sandbox, &["10.244.0.5"]);
        let _agent = Agent::start(sandbox, &[], &[]);
        until(sandbox, "healthy", healthy);
        let pod = Elsewhere::new();
        pod.pair("vpod");
        let hooks = || show(sandbox, &["status"])["hooks"].clone();
        let has = |program: &str| {
            let hooks = hooks();
            hooks.as_array().is_some_and(|all| all.iter().any(|h| h["program"] == program && h["target"] == "vpod"))
        };
        until(sandbox, "programs at the pod", || has("pod_ingress") && has("pod_egress"));
        ip("link del vpod");
        until(sandbox, "no links of pods", || !hooks().to_string().contains("pod_"));
        let log_text = log(sandbox);
        let detached: Vec<&str> = log_text.lines().filter(|line| line.contains(" detached: ")).collect();
        assert!(detached.len() == 1 && detached[0].contains("device=\"vpod\""), "{log_text}");
    });
}

pub(crate) fn a_manifest_that_cannot_be_read_is_one_line_of_the_log_and_one_when_it_can() {
    sandbox::run(|sandbox| {
        write_manifest(sandbox, &["10.244.0.5"]);
        let _agent = Agent::start(sandbox, &[], &[]);
        until(sandbox, "healthy", healthy);
        let path = sandbox.dir.join("manifests/more.yaml");
        let lines =
            || log(sandbox).lines().filter(|line| line.contains("more.yaml")).map(str::to_owned).collect::<Vec<_>>();
        fs::write(&path, "kind: [Service\n").expect("written");
        until(sandbox, "a line", || !lines().is_empty());
        fs::write(&path, "").expect("written");
        // Lines are in order: what is told of the first contents comes before this.
        until(sandbox, "it works", || lines().iter().any(|line| line.ends_with("more.yaml: works")));
        let lines = lines();
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert!(
            lines[0].contains(" WARN ") && lines[0].ends_with("the last state of what cannot be read stays in force")
        );
    });
}

pub(crate) fn a_refused_connection_from_outside_is_counted_and_traced() {
    sandbox::run(|sandbox| {
        let outside = Elsewhere::new();
        make_uplink_to(&outside);
        write_manifest(sandbox, &[]);
        let _agent = Agent::start(sandbox, &[], &["--trace-packets"]);
        until(sandbox, "healthy", healthy);
        let refused = |count: u64| {
            let counters = show(sandbox, &["status"])["counters"].clone();
            let counters = counters.as_array().expect("counters").clone();
            counters.iter().any(|counter| counter["reason"] == "no_endpoints" && counter["count"] == count)
        };
        assert!(refused(0));
        let client = outside.run("bash", "-c :</dev/tcp/10.0.0.1/30080");
        assert!(String::from_utf8_lossy(&client.stderr).contains("refused"), "{client:?}");
        assert!(refused(1), "{}", show(sandbox, &["status"]));
        let metrics = get("127.0.0.1:10249", "/metrics");
        for line in [
            "lb_scrape_up 1",
            r#"lb_not_balanced_total{reason="no_endpoints",disposition="refuse"} 1"#,
            r#"lb_service_flows_rejected_total{namespace="default",service="web",port="http",protocol="TCP",ip_family="IPv4"} 1"#,
            r#"lb_map_entries{map="FRONTENDS4"} 3"#,
            r#"lb_map_entries{map="SERVICES4"} 1"#,
            r#"lb_map_capacity{map="SERVICES4"} 1024"#,
            r#"lb_map_entries{map="SOURCE_RANGES4"} 0"#,
            r#"lb_map_capacity{map="SOURCE_RANGES6"} 131072"#,
            r#"lb_map_entries{map="FLOWS4"} 0"#,
            r#"lb_map_entries{map="LOCAL_ADDRS4"} 2"#,
            r#"lb_watch_up{watch="directory"} 1"#,
            r#"lb_objects{kind="Service"} 1"#,
            r#"lb_devices_attached{role="uplink"} 1"#,
            r#"kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1"#,
        ] {
            assert!(metrics.lines().any(|shown| shown == line), "no {line} in\n{metrics}");
        }
        assert!(get("127.0.0.1:10249", "/proxyMode").ends_with("\r\n\r\nlb"));
        until(sandbox, "a line of the trace", || log(sandbox).contains("no_endpoints"));
        assert!(log(sandbox).contains("to 10.0.0.1 port 30080"), "{}", log(sandbox));
    });
}

pub(crate) fn three_capabilities_are_enough() {
    sandbox::run(|sandbox| {
        make_uplink();
        write_manifest(sandbox, &["10.244.0.5"]);
        ip("addr add 10.244.0.5/32 dev lo");
        let _endpoint = TcpListener::bind("10.244.0.5:8080").expect("free");
        for _ in 0..2 {
            let wrapper = ["setpriv", "--bounding-set", PRIVILEGES, "--inh-caps", "-all"];
            let mut agent = Agent::start(sandbox, &wrapper, &["--balance=least-conn"]);
            until(sandbox, "healthy", healthy);
            connections_are_counted_as_long_as_they_are_held(sandbox);
            let status = fs::read_to_string(format!("/proc/{}/status", agent.0.id())).expect("its status");
            let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
            assert_eq!(effective.trim(), "000000c000001000");
            assert!(agent.signal(libc::SIGTERM).success(), "{}", log(sandbox));
        }
        let bpffs = sandbox.bpffs.display().to_string();
        command("setpriv", &format!("--bounding-set {PRIVILEGES} --inh-caps -all {AGENT} status --bpffs {bpffs}"));
        command("setpriv", &format!("--bounding-set {PRIVILEGES} --inh-caps -all {AGENT} cleanup --bpffs {bpffs}"));
        assert!(!sandbox.bpffs.join("lb").exists());
    });
}

/// That an agent with `least-conn` counts the connections of sockets: the kernel walks over them for a program of its own.
fn connections_are_counted_as_long_as_they_are_held(sandbox: &Sandbox) {
    let flows = || show(sandbox, &["backend", "list"])["items"][0]["flows"].as_u64();
    let enter = format!("echo 0 >{}/cgroup.procs", sandbox.cgroup.display());
    let connect = "exec 3<>/dev/tcp/10.96.0.10/80 && exec sleep 600";
    let mut client = Command::new("bash").args(["-c", &format!("{enter} && {connect}")]).spawn().expect("bash");
    until(sandbox, "a connection", || flows() == Some(1));
    // Nobody but who counts puts this right.
    let pins = lb_agent::loader::Pins::new(&sandbox.bpffs);
    let mut loads = Loads::open::<[u8; 4]>(|map| pins.open(map)).unwrap_or_else(|error| panic!("{error}"));
    let (backend, _) = loads.read().expect("read")[0];
    loads.set(&backend, Load { flows: 5000 }).expect("written");
    until(sandbox, "it is counted", || flows() == Some(1));
    client.kill().expect("it runs");
    client.wait().expect("a child");
    until(sandbox, "it is gone", || flows() == Some(0));
    assert!(!log(sandbox).contains("least-conn"), "{}", log(sandbox));
}

pub(crate) fn missing_privileges_and_a_bpffs_that_cannot_be_mounted_are_told_with_a_remedy() {
    sandbox::run(|sandbox| {
        write_manifest(sandbox, &["10.244.0.5"]);
        let plain = sandbox.dir.join("plain");
        fs::create_dir(&plain).expect("a directory");
        let said = |privileges: &str, bpffs: &Path| {
            let at = |flag: String| if Path::new(&flag) == sandbox.bpffs { bpffs.display().to_string() } else { flag };
            let output = Command::new("setpriv")
                .args(["--bounding-set", privileges, "--inh-caps", "-all", AGENT, "run"])
                .args(flags(sandbox).into_iter().map(at))
                .output()
                .expect("setpriv");
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (code, message) = said("-all,+net_admin", &sandbox.bpffs);
        assert_eq!(code, Some(1), "{message}");
        assert!(message.contains("BPF, PERFMON are missing") && message.contains("securityContext"), "{message}");

        let (code, message) = said(PRIVILEGES, &plain);
        assert_eq!(code, Some(64), "{message}");
        assert!(message.contains("--bpffs") && message.contains("mount -t bpf"), "{message}");
    });
}

pub(crate) fn a_bpffs_that_is_not_mounted_is_mounted() {
    sandbox::run(|sandbox| {
        let plain = sandbox.dir.join("plain");
        fs::create_dir(&plain).expect("a directory");
        let pins = lb_agent::loader::Pins::create(&plain).unwrap_or_else(|error| panic!("{error}"));
        assert!(fs::read_to_string("/proc/mounts").expect("mounts").contains(&format!("{} bpf ", plain.display())));
        assert!(pins.maps().is_dir());
    });
}

pub(crate) fn an_address_for_healthz_that_is_taken_does_not_keep_the_data_plane_down() {
    sandbox::run(|sandbox| {
        let _taken = TcpListener::bind(HEALTH).expect("free");
        write_manifest(sandbox, &["10.244.0.5"]);
        let _agent = Agent::start(sandbox, &[], &[]);
        until(sandbox, "synchronized", || log(sandbox).contains("first synchronization done"));
        until(sandbox, "told", || log(sandbox).contains(&format!("--healthz-bind-address {HEALTH}: ")));
        assert_eq!(show(sandbox, &["service", "list"])["items"].as_array().map(Vec::len), Some(1));
    });
}

pub(crate) fn an_api_server_that_is_away_keeps_health_at_503_and_devices_served() {
    sandbox::run(|sandbox| {
        let outside = Elsewhere::new();
        make_uplink_to(&outside);
        let _agent = Agent::start_without_api_server(sandbox);
        until(sandbox, "attached", || log(sandbox).contains("attached device=\"eth0\""));
        until(sandbox, "unhealthy", || answer().starts_with("HTTP/1.1 503"));
        assert!(!log(sandbox).contains("first synchronization"), "{}", log(sandbox));
    });
}

pub(crate) fn a_restart_takes_the_programs_off_no_uplink_that_is_one_by_the_nodes_address_alone() {
    sandbox::run(|sandbox| {
        let outside = Elsewhere::new();
        outside.pair("eth0");
        ip("link set eth0 up");
        ip("addr add 10.0.0.1/24 dev eth0");
        for arguments in ["link set peth0 up", "addr add 10.0.0.254/24 dev peth0"] {
            assert!(outside.run("ip", arguments).status.success());
        }
        write_manifest(sandbox, &[]);
        let node = sandbox.dir.join("manifests/node.yaml");
        let address = "status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}";
        fs::write(&node, format!("apiVersion: v1\nkind: Node\nmetadata: {{name: node-a}}\n{address}\n"))
            .expect("written");

        let held = || {
            let hooks = show(sandbox, &["status"])["hooks"].as_array().expect("hooks").clone();
            let mut of_device = hooks.into_iter().filter(|hook| hook["target"] == "eth0");
            of_device.find(|hook| hook["hook"] == "ingress").map(|hook| hook["program"].clone())
        };
        // A link that was removed and made again has another number, and there were no programs between.
        let link = || {
            let index = nix::net::if_::if_nametoindex("eth0").expect("an index");
            let pin = lb_agent::loader::Pins::new(&sandbox.bpffs).link(&format!("tcx-{index}-ingress"));
            let shown = sandbox::command("bpftool", &format!("link show pinned {}", pin.display()));
            shown.split(':').next().expect("a number").to_owned()
        };
        let refused = || {
            let client = outside.run("bash", "-c :</dev/tcp/10.0.0.1/30080");
            assert!(String::from_utf8_lossy(&client.stderr).contains("refused"), "{client:?}");
            let counters = show(sandbox, &["status"])["counters"].as_array().expect("counters").clone();
            let counter = counters.iter().find(|counter| counter["reason"] == "no_endpoints").expect("counted");
            counter["count"].as_u64().expect("a number")
        };

        let mut agent = Agent::start(sandbox, &[], &[]);
        until(sandbox, "an uplink by its address", || healthy() && held() == Some("uplink_ingress".into()));
        assert_eq!(refused(), 1);
        let first = link();
        // Once more where the device was found before the Node was read.
        let attached = || log(sandbox).matches("attached device=\"eth0\"").count();
        let before = attached();
        agent.signal(libc::SIGKILL);

        let mut agent = Agent::start_without_api_server(sandbox);
        until(sandbox, "attached again", || attached() > before && answer().starts_with("HTTP/1.1 503"));
        assert_eq!((link(), held()), (first.clone(), Some("uplink_ingress".into())), "{}", log(sandbox));
        assert_eq!(refused(), 2);
        agent.signal(libc::SIGKILL);

        let mut agent = Agent::start(sandbox, &[], &[]);
        until(sandbox, "healthy", healthy);
        assert_eq!((link(), held()), (first, Some("uplink_ingress".into())), "{}", log(sandbox));
        assert_eq!(refused(), 3);
        assert!(!log(sandbox).contains(" detached: "), "{}", log(sandbox));
        agent.signal(libc::SIGKILL);

        // Without the Node's address it is one end of a pair, as a pod's.
        fs::remove_file(&node).expect("removed");
        let _agent = Agent::start(sandbox, &[], &[]);
        until(sandbox, "no uplink", || healthy() && held() == Some("pod_ingress".into()));
    });
}

pub(crate) fn an_agent_whose_configuration_file_changes_ends_and_the_next_one_follows_it() {
    sandbox::run(|sandbox| {
        write_manifest(sandbox, &["10.244.0.5"]);
        // As a ConfigMap is mounted: a link to a link to a directory, of which the second is replaced.
        let mounted = sandbox.dir.join("mounted");
        let publish = |version: &str, fields: &str| {
            let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
            fs::create_dir_all(mounted.join(version)).expect("a directory");
            fs::write(mounted.join(version).join("config.conf"), format!("{head}{fields}\n")).expect("written");
            symlink(version, mounted.join("..data_tmp")).expect("a link");
            fs::rename(mounted.join("..data_tmp"), mounted.join("..data")).expect("renamed");
        };
        publish("..1", "oomScoreAdj: 0");
        let file = mounted.join("config.conf");
        symlink("..data/config.conf", &file).expect("a link");
        let path = file.display().to_string();
        let mut agent = Agent::start(sandbox, &[], &["--config", &path]);
        until(sandbox, "healthy", healthy);
        assert_eq!(node_ports_at(sandbox, "127.0.0.1"), 1);
        let services = show(sandbox, &["service", "list"]);

        publish("..2", "oomScoreAdj: 0");
        thread::sleep(Duration::from_secs(1));
        assert_eq!(agent.0.try_wait().expect("asked"), None, "the contents are the same\n{}", log(sandbox));

        publish("..3", "oomScoreAdj: 0\niptables: {localhostNodePorts: false}");
        let start = Instant::now();
        let status = agent.0.wait().expect("it ends");
        assert!(start.elapsed() < Duration::from_secs(5), "it was told by inotify, {:?}", start.elapsed());
        assert_eq!(status.code(), Some(75), "{}", log(sandbox));
        let said = format!("ERROR --config {path}: the contents were changed");
        assert!(log(sandbox).contains(&said), "{}", log(sandbox));
        assert!(log(sandbox).contains("the data plane stays in force"), "{}", log(sandbox));
        assert_eq!(show(sandbox, &["service", "list"]), services);
        assert_eq!(node_ports_at(sandbox, "127.0.0.1"), 1);

        let _agent = Agent::start(sandbox, &[], &["--config", &path]);
        until(sandbox, "it follows the new contents", || healthy() && node_ports_at(sandbox, "127.0.0.1") == 0);
        assert_eq!(show(sandbox, &["service", "list"]), services);
    });
}

/// The flag of `LOCAL_ADDRS4` that says whether node ports answer at an address of the node.
fn node_ports_at(sandbox: &Sandbox, address: &str) -> u32 {
    let pins = lb_agent::loader::Pins::new(&sandbox.bpffs);
    let map = aya::maps::MapData::from_pin(pins.maps().join("LOCAL_ADDRS4")).expect("the map");
    let map = aya::maps::HashMap::<_, [u8; 4], u32>::try_from(aya::maps::Map::HashMap(map)).expect("a hash map");
    let address: std::net::Ipv4Addr = address.parse().expect("an address");
    map.get(&address.octets(), 0).expect("the node's own") & LocalAddressFlags::NODE_PORTS
}

pub(crate) fn bad_configuration_is_exit_code_64_and_names_the_flag() {
    sandbox::run(|sandbox| {
        let manifests = sandbox.dir.join("manifests").display().to_string();
        fs::create_dir(&manifests).expect("a directory");
        let cases: &[&[&str]] = &[
            &["--manifests", "/nowhere"],
            &["--kubeconfig", "/nowhere"],
            &["--cgroup", "/proc", "--manifests", &manifests],
            &["--bpffs", "/nowhere", "--manifests", &manifests],
            &["--node-port-range", "9-8"],
            &["--flow-table-size", "0"],
            &["--healthz-bind-address", "nowhere"],
            &["--log-level", "=,="],
        ];
        let bpffs = sandbox.bpffs.display().to_string();
        for case in cases {
            let mut arguments = [&["run"], *case].concat();
            if case[0] != "--bpffs" {
                arguments.extend(["--bpffs", &bpffs]);
            }
            let output = lb_agent(&arguments);
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{case:?}: {text}");
            assert!(text.contains(case[0]), "{case:?}: {text}");
        }
    });
}
