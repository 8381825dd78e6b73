//! The places together.

use super::*;
use clap::Parser;
use std::fs;

/// Files in a directory of their own, and a machine with eight CPUs.
struct Scene {
    directory: tempfile::TempDir,
    machine: Machine,
}

impl Scene {
    fn new() -> Self {
        let machine = Machine {
            online: (0..8).collect(),
            allowed: (0..8).collect(),
            vm_user: Some(64055),
            vm_group: Some(108),
        };
        Self { directory: tempfile::tempdir().unwrap(), machine }
    }

    fn with(self, name: &str, text: &str) -> Self {
        fs::write(self.directory.path().join(name), text).unwrap();
        self
    }

    fn load(&self, line: &str) -> Result<(Config, Vec<Notice>), ConfigError> {
        let words = ["virtio-forwarder"].into_iter().chain(line.split_whitespace());
        let options = CommandLine::try_parse_from(words).unwrap().options;
        let at = |name| self.directory.path().join(name);
        Config::load(
            &options,
            &Locations { config: at("config.toml"), defaults: at("defaults") },
            &self.machine,
        )
    }

    fn config(&self, line: &str) -> Config {
        self.load(line).unwrap().0
    }

    fn mistakes(&self, line: &str) -> Vec<String> {
        self.load(line).unwrap_err().mistakes
    }
}

#[test]
fn without_any_word_there_is_a_configuration() {
    let (config, notices) = Scene::new().load("").unwrap();
    assert_eq!(notices, []);
    assert_eq!(config.cpus, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(config.relays, 64);
    assert_eq!(config.sockets.path(3), Path::new("/tmp/virtio-forwarder/virtio-forwarder3.sock"));
    assert_eq!((config.sockets.owner, config.sockets.group), (Some(64055), Some(108)), "libvirt's accounts");
    assert!(!config.sockets.client && !config.sockets.dynamic);
    assert_eq!((config.is_client(3), config.mtu(3)), (false, None));
    assert_eq!(config.guest, GuestOffer::default());
    assert_eq!((config.bind, config.devices, config.pins), (vec![], vec![], Pins::new()));
    assert_eq!(config.vf_token, None);
    assert_eq!((config.log_level.number(), config.log_level.filter()), (6, LevelFilter::INFO));
    assert_eq!(config.idle, Idle::default());
    assert_eq!(config.control.socket, Path::new("/run/virtio-forwarder/control.sock"));
    assert_eq!((config.control.group, config.control.metrics_listen), (None, None));
}

#[test]
fn functions_to_bind_are_addresses_and_interfaces_in_any_kind_of_list() {
    for (name, text) in [
        ("defaults", "VIRTIOFWD_BIND_VFIO_PCI=0000:05:08.1,05:08.2,eth0,eth1:2\n"),
        ("defaults", "VIRTIOFWD_BIND_VFIO_PCI=(0000:05:08.1 05:08.2 'eth0,eth1:2')\n"),
        ("config.toml", "bind-vfio-pci = [\"0000:05:08.1\", \"05:08.2\", \"eth0\", \"eth1:2\"]\n"),
    ] {
        let config = Scene::new().with(name, text).config("");
        let meant = ["05:08.1", "05:08.2", "eth0", "eth1:2"].map(|text| text.parse().unwrap());
        assert_eq!(config.bind, meant, "{text}");
    }
    let config =
        Scene::new().with("defaults", "VIRTIOFWD_BIND_VFIO_PCI=eth0\n").config("--bind-vfio-pci eth1");
    assert_eq!(config.bind, ["eth1".parse().unwrap()]);
    let mistakes = Scene::new().with("defaults", "\nVIRTIOFWD_BIND_VFIO_PCI=(05:08.9 eth0:0)\n").mistakes("");
    assert_eq!(mistakes.len(), 2);
    assert!(
        mistakes[0].contains("defaults:2: VIRTIOFWD_BIND_VFIO_PCI: '05:08.9' is neither"),
        "{mistakes:?}"
    );
    assert!(mistakes[1].contains("'eth0:0'"), "{mistakes:?}");
}

#[test]
fn a_flag_goes_before_the_toml_file_and_that_before_the_defaults() {
    let scene = Scene::new()
        .with(
            "defaults",
            "VIRTIOFWD_CPU_MASK=1\nVIRTIOFWD_LOG_LEVEL=3\nVIRTIOFWD_JUMBO=y\nVIRTIOFWD_MRGBUF=y\n",
        )
        .with("config.toml", "cpus = [2]\nloglevel = 4\nenable-jumbo = false\nidle = \"poll\"\n");
    let config = scene.config("--cpus 3 --enable-mrgbuf=false");
    assert_eq!(config.cpus, [3]);
    assert_eq!(config.log_level.number(), 4);
    assert_eq!(config.guest, GuestOffer::default());
    assert_eq!(config.idle, Idle::Poll);

    let scene = scene.with("other", "VIRTIOFWD_LOG_LEVEL=1\n").with("other.toml", "relays = 2\n");
    let other = scene.directory.path().join("other");
    let config = scene.config(&format!("--defaults {0} --config {0}.toml", other.display()));
    assert_eq!((config.log_level.number(), config.relays, config.cpus.len()), (1, 2, 7));
}

#[test]
fn everything_can_be_said_in_each_place() {
    let toml = r#"
        cpus = [1, 2]
        vhost-path = "/run/vm"
        vhost-socket = "vm%u"
        vhost-username = "root"
        vhost-groupname = 0
        vhostuser-client = true
        dynamic-sockets = true
        relays = 8
        add-pci-vf = ["0000:05:08.1=1"]
        add-device = ["tap:vm2=2", "loopback=3", "loopback=4"]
        virtio-cpu = ["0:1,2;1:2", "7:1"]
        enable-mrgbuf = true
        enable-jumbo = true
        enable-tso = true
        vfio-vf-token = "0"
        loglevel = 7
        control-socket = "/run/c.sock"
        control-group = "root"
        metrics-listen = "[::1]:9100"
        idle = "poll"
    "#;
    let defaults = "
        VIRTIOFWD_CPU_MASK=0x6 VIRTIOFWD_SOCKET_DIR=/run/vm VIRTIOFWD_SOCKET_FNAME_PATTERN=vm%u
        VIRTIOFWD_SOCKET_OWNER=root VIRTIOFWD_SOCKET_GROUP=0 VIRTIOFWD_VHOST_CLIENT=y VIRTIOFWD_DYNAMIC_SOCKETS=1
        VIRTIOFWD_RELAYS=8 VIRTIOFWD_STATIC_VFS=05:08.1=1 VIRTIOFWD_DEVICES=(tap:vm2=2 loopback=3 loopback=4)
        VIRTIOFWD_CPU_PINS=('0:1,2;1:2' 7:1) VIRTIOFWD_MRGBUF=y VIRTIOFWD_JUMBO=y VIRTIOFWD_TSO=y
        VIRTIOFWD_VFIO_VF_TOKEN=0 VIRTIOFWD_LOG_LEVEL=7 VIRTIOFWD_CONTROL_SOCKET=/run/c.sock
        VIRTIOFWD_CONTROL_GROUP=root VIRTIOFWD_METRICS_LISTEN=[::1]:9100 VIRTIOFWD_IDLE=poll";
    let flags = "--cpus 0x6 --vhost-path /run/vm --vhost-socket vm%u --vhost-username=root --vhost-groupname=0 \
        --vhostuser-client --dynamic-sockets --relays 8 --add-pci-vf 05:08.1=1 --add-device tap:vm2=2 \
        --add-device loopback=3 --add-device loopback=4 --virtio-cpu 0:1,2;1:2 --virtio-cpu 7:1 --enable-mrgbuf \
        --enable-jumbo --enable-tso --vfio-vf-token 0 --loglevel 7 --control-socket /run/c.sock --control-group root \
        --metrics-listen [::1]:9100 --idle poll";
    let by_toml = Scene::new().with("config.toml", toml).config("");
    assert_eq!(by_toml.sockets.path(7), Path::new("/run/vm/vm7"));
    assert_eq!((by_toml.sockets.owner, by_toml.sockets.group), (Some(0), Some(0)));
    assert_eq!(by_toml.devices.len(), 4);
    assert_eq!(by_toml.devices[0].device.to_string(), "0000:05:08.1");
    assert_eq!(by_toml.pins[&0], (1, 2));
    assert_eq!(by_toml.pins[&1], (2, 2));
    assert_eq!(by_toml.vf_token, Some("14d63f20-8445-11ea-8900-1f9ce7d5650d".parse().unwrap()));
    assert_eq!(by_toml.control.group, Some(0));
    let expected = format!("{by_toml:?}");
    assert_eq!(format!("{:?}", Scene::new().with("defaults", defaults).config("")), expected);
    assert_eq!(format!("{:?}", Scene::new().config(flags)), expected);
}

#[test]
fn what_a_vf_is_asked_for_is_checked() {
    let tables = "[[relay]]\nid = 1\nqueue-pairs = 2\nmac = \"52:54:00:00:00:05\"\nvlans = [10, 4094]";
    let config = Scene::new().with("config.toml", tables).config("");
    let wishes = &config.wishes()[&1];
    assert_eq!((wishes.queue_pairs.get(), &wishes.vlans[..]), (2, &[10, 4094][..]));
    assert_eq!(wishes.mac.unwrap().to_string(), "52:54:00:00:00:05");
    let bad = "[[relay]]\nid = 1\nqueue-pairs = 0\n[[relay]]\nid = 2\nmac = \"01:00:5e:00:00:01\"\n\
               [[relay]]\nid = 3\nvlans = [1, 4095]\n[[relay]]\nid = 4\nqueue-pairs = 33";
    let mistakes = Scene::new().with("config.toml", bad).mistakes("").join("\n");
    for says in [
        ":3: queue-pairs: '0' is no number of queue pairs; write a number from 1 to 32",
        ":6: mac: '01:00:5e:00:00:01' is no address of a station",
        ":9: vlans: '4095' is no VLAN; write a number from 1 to 4094",
        ":12: queue-pairs: '33'",
    ] {
        assert!(mistakes.contains(says), "{says}\n{mistakes}");
    }
}

#[test]
fn zero_copy_that_is_not_possible_is_refused_with_the_reason() {
    let tables = "[[relay]]\nid = 1\nzero-copy = \"rx\"\n[[relay]]\nid = 2\nzero-copy = \"both\"\n[[relay]]\nid = 3\nzero-copy = true";
    assert!(Scene::new().with("config.toml", tables).load("").is_err(), "a word is wanted");
    let mistakes = Scene::new().with("config.toml", &tables.replace("true", "\"on\"")).mistakes("");
    let says = [
        ":3: zero-copy: 'rx' is not possible: no driver here lets a VF write into a VM's buffers",
        ":6: zero-copy: 'both' is not possible",
        ":9: zero-copy: 'on' says nothing about zero-copy; write off or tx",
    ];
    assert_eq!(mistakes.len(), says.len(), "{mistakes:#?}");
    for (mistake, says) in mistakes.iter().zip(says) {
        assert!(mistake.contains(says), "{mistake}\n{says}");
    }
}

#[test]
fn single_relays_differ_from_the_rest() {
    let tables = "
        [[relay]]
        id = 3
        vhostuser-client = true
        mtu = 9000
        [[relay]]
        id = 4
        vhostuser-client = false
        zero-copy = \"off\"
        [[relay]]
        id = 5
        mtu = 1500
        zero-copy = \"tx\"
    ";
    let scene = Scene::new().with("config.toml", tables);
    let modes = |line: &str| {
        let config = scene.config(line);
        [2, 3, 4, 5].map(|id| (config.is_client(id), config.mtu(id)))
    };
    assert_eq!(modes(""), [(false, None), (true, Some(9000)), (false, None), (false, Some(1500))]);
    let clients = [(true, None), (true, Some(9000)), (false, None), (true, Some(1500))];
    assert_eq!(modes("--vhostuser-client"), clients);
    let config = scene.config("");
    assert_eq!([3, 4, 5].map(|id| config.zero_copy(id)), [ZeroCopy::Off, ZeroCopy::Off, ZeroCopy::Transmit]);

    let wrong = "relays = 4\n[[relay]]\nid = 4\n[[relay]]\nid = 1\nmtu = 67\n[[relay]]\nid = 1\nmtu = 9685\n";
    let mistakes = Scene::new().with("config.toml", wrong).mistakes("");
    let says = [
        ":3: id: there is no relay 4",
        ":6: mtu: '67' is no MTU",
        ":9: mtu: '9685' is no MTU",
        ":8: id: relay 1 has a table before",
    ];
    assert_eq!(mistakes.len(), says.len(), "{mistakes:#?}");
    for (mistake, says) in mistakes.iter().zip(says) {
        assert!(mistake.contains(says), "{mistake}\n{says}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_with_their_places() {
    let scene = Scene::new()
        .with(
            "defaults",
            "\nVIRTIOFWD_STATIC_VFS=(05:08.1=64 nonsense=1)\nVIRTIOFWD_SOCKET_OWNER=no-such-user\n",
        )
        .with("config.toml", "relays = 0\nidle = \"sleep\"\nvirtio-cpu = [\"0:9\", \"x\"]\n");
    let mistakes =
        scene.mistakes("--cpus 1,9 --metrics-listen localhost --vfio-vf-token abc --loglevel loud");
    let at = |name: &str| scene.directory.path().join(name).display().to_string();
    let expected = [
        (format!("{}:1: relays: '0'", at("config.toml")), "1 to 1024"),
        ("--cpus: CPU 9 is absent".to_owned(), "online are 0-7"),
        (
            format!("{}:3: VIRTIOFWD_SOCKET_OWNER: there is no user 'no-such-user'", at("defaults")),
            "create it",
        ),
        (format!("{}:2: VIRTIOFWD_STATIC_VFS: there is no relay 64", at("defaults")), "--relays"),
        (format!("{}:2: VIRTIOFWD_STATIC_VFS: 'nonsense' is not a PCI address", at("defaults")), "02:08.0"),
        (format!("{}:3: virtio-cpu: '9' in '0:9' is no worker CPU", at("config.toml")), "1-7"),
        (format!("{}:3: virtio-cpu: 'x' is no pin", at("config.toml")), "ID:CPU"),
        ("--metrics-listen: 'localhost' is no address".to_owned(), "127.0.0.1:9100"),
        ("--vfio-vf-token: 'abc' is no VF token".to_owned(), "UUID"),
        ("--loglevel: 'loud' is no log level".to_owned(), "0 to 7"),
        (format!("{}:2: idle: 'sleep'", at("config.toml")), "adaptive or poll"),
    ];
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    for (mistake, (starts, remedy)) in mistakes.iter().zip(&expected) {
        assert!(mistake.starts_with(starts) && mistake.contains(remedy), "{mistake}\n{starts}");
    }
    let error = scene.load("--cpus 1,9").unwrap_err().to_string();
    assert!(error.starts_with("the configuration cannot be used:\n  "), "{error}");
}

#[test]
fn one_device_a_relay_and_one_relay_a_device() {
    let scene = Scene::new();
    for (line, says) in [
        ("--add-device null=1 --add-pci-vf 05:08.1=1", "relay 1 gets 0000:05:08.1 and null"),
        ("--add-device tap:a=1 --add-device tap:a=2", "tap:a goes to relay 1 and to relay 2"),
        ("--add-device null", "write DEVICE=ID"),
        ("--add-device null=", "'' is no relay id"),
        ("--add-pci-vf tap:a=1", "'tap:a' is not a PCI address"),
    ] {
        let mistakes = scene.mistakes(line);
        assert!(mistakes.len() == 1 && mistakes[0].contains(says), "{line}: {mistakes:?}");
    }
    assert_eq!(scene.config("--add-device pcap:/x=y.pcap=1").devices[0].device.to_string(), "pcap:/x=y.pcap");
}

#[test]
fn files_that_are_named_must_be_there() {
    let scene = Scene::new();
    let mistakes = scene.mistakes("--config /nonexistent.toml --defaults /nonexistent");
    assert_eq!(mistakes.len(), 2);
    assert!(
        mistakes[0].starts_with("--config: cannot read '/nonexistent.toml': No such file"),
        "{mistakes:?}"
    );
    assert!(mistakes[1].starts_with("--defaults: "), "{mistakes:?}");
}

#[test]
fn socket_paths_that_are_too_long_are_found_before_any_is_made() {
    let mistakes = Scene::new().mistakes(&format!("--vhost-path /{}", "d".repeat(100)));
    assert!(mistakes.len() == 1 && mistakes[0].starts_with("--vhost-path: the socket path"), "{mistakes:?}");
    for option in ["--vhost-path", "--control-socket"] {
        let mistakes = Scene::new().mistakes(&format!("{option} run/x"));
        assert!(mistakes.len() == 1 && mistakes[0].contains("give an absolute path"), "{mistakes:?}");
    }
    let mistakes = Scene::new().mistakes("--vhost-socket vm.sock");
    assert!(mistakes[0].starts_with("--vhost-socket: 'vm.sock' lacks %u"), "{mistakes:?}");
}

#[test]
fn settings_without_effect_are_told_even_beside_mistakes() {
    let scene = Scene::new().with("defaults", "VIRTIOFWD_JUMBO=y\nVIRTIOFWD_CPU_MSAK=1\n");
    let error = scene.load("--cpus 99").unwrap_err();
    let notices: Vec<_> = error.notices.iter().map(ToString::to_string).collect();
    assert!(notices[0].starts_with("warning: ") && notices[0].contains("VIRTIOFWD_CPU_MSAK"), "{notices:?}");
    assert!(
        notices[1].starts_with("note: ") && notices[1].contains("VIRTIOFWD_JUMBO has no effect"),
        "{notices:?}"
    );
    assert_eq!((notices.len(), error.mistakes.len()), (2, 1));
}

#[test]
fn high_log_levels_are_clamped_as_in_the_c_daemon() {
    let (config, notices) = Scene::new().load("--loglevel 9").unwrap();
    assert_eq!((config.log_level.number(), config.log_level.filter()), (7, LevelFilter::DEBUG));
    assert!(
        matches!(&notices[..], [Notice::Warning(text)] if text.starts_with("--loglevel: 9")),
        "{notices:?}"
    );
}

#[test]
fn what_a_machine_is_prepared_for_is_told_whether_a_daemon_runs_or_not() {
    let scene = Scene::new()
        .with("defaults", "VIRTIOFWD_STATIC_VFS=(0000:05:08.1=1)\nVIRTIOFWD_CPU_PINS=(2:4,6)\n")
        .with("config.toml", "cpus = \"2,4,6\"\nrelays = 5\nvhost-path = \"/srv/sockets\"\n");
    let summary = scene.config("").summary();
    assert_eq!((summary.cpus, summary.vhost_path), (vec![2, 4, 6], "/srv/sockets".into()));
    let told: Vec<_> = summary
        .relays
        .iter()
        .map(|relay| {
            (
                relay.id,
                relay.device.as_ref().map(ToString::to_string),
                relay.cpus.vf_to_vm,
                relay.cpus.vm_to_vf,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (0, None, Some(2), Some(2)),
            (1, Some("0000:05:08.1".to_owned()), Some(4), Some(4)),
            (2, None, Some(4), Some(6)),
            (3, None, Some(2), Some(2)),
            (4, None, Some(4), Some(4)),
        ]
    );
}

#[test]
fn the_files_that_we_ship_are_valid() {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    let ship = |name: &str| fs::read_to_string(packaging.join(name)).unwrap();
    let scene = Scene::new()
        .with("defaults", &ship("default/virtioforwarder"))
        .with("config.toml", &ship("config.toml"));
    let (config, notices) = scene.load("").unwrap();
    assert_eq!(notices, []);
    assert!(!config.sockets.client);
    assert!(config.guest.mergeable_buffers);
    assert_eq!(config.cpus.len(), 7);

    // What the example offers in comments is valid, too.
    let example = ship("config.toml");
    let offered =
        example.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' '));
    let offered: String = offered.map(|line| format!("{line}\n")).collect();
    assert!(offered.lines().count() > 10);
    let config = Scene::new().with("config.toml", &offered).config("");
    assert_eq!((config.devices.len(), config.pins.len()), (5, 2));
    assert_eq!((config.is_client(5), config.mtu(5)), (true, Some(9000)));
    assert_eq!(config.zero_copy(5), ZeroCopy::Transmit);
}
