//! `/etc/default/virtioforwarder`: the file of the C daemon, under the C daemon's names.

use std::path::Path;

use super::layer::{Layer, List, Notice, Origin, Sourced, Switch, Text};
use super::shell::{self, Assignment, Other, Value};

/// What a name stands for.
enum Meaning {
    /// One word; empty: not given.
    Text(fn(&mut Layer) -> &mut Option<Text>),
    /// Empty: off; anything else: on.
    Switch(fn(&mut Layer) -> &mut Option<Switch>),
    /// An array, or one word.
    List(fn(&mut Layer) -> &mut Option<List>),
    /// Taken, without effect, for this reason.
    Obsolete(&'static str),
}

const ZMQ: &str = "ZeroMQ services are replaced by the control socket";
const BALANCER: &str = "relays stay where they are placed";

const NAMES: &[(&str, Meaning)] = &[
    ("VIRTIOFWD_CPU_MASK", Meaning::Text(|layer| &mut layer.cpus)),
    ("VIRTIOFWD_LOG_LEVEL", Meaning::Text(|layer| &mut layer.loglevel)),
    ("VIRTIOFWD_JUMBO", Meaning::Switch(|layer| &mut layer.enable_jumbo)),
    ("VIRTIOFWD_MRGBUF", Meaning::Switch(|layer| &mut layer.enable_mrgbuf)),
    ("VIRTIOFWD_TSO", Meaning::Switch(|layer| &mut layer.enable_tso)),
    ("VIRTIOFWD_SOCKET_OWNER", Meaning::Text(|layer| &mut layer.vhost_username)),
    ("VIRTIOFWD_SOCKET_GROUP", Meaning::Text(|layer| &mut layer.vhost_groupname)),
    ("VIRTIOFWD_BIND_VFIO_PCI", Meaning::List(|layer| &mut layer.bind_vfio_pci)),
    ("VIRTIOFWD_STATIC_VFS", Meaning::List(|layer| &mut layer.add_pci_vf)),
    ("VIRTIOFWD_DYNAMIC_SOCKETS", Meaning::Switch(|layer| &mut layer.dynamic_sockets)),
    ("VIRTIOFWD_VFIO_VF_TOKEN", Meaning::Text(|layer| &mut layer.vfio_vf_token)),
    ("VIRTIOFWD_CPU_PINS", Meaning::List(|layer| &mut layer.virtio_cpu)),
    ("VIRTIOFWD_SOCKET_DIR", Meaning::Text(|layer| &mut layer.vhost_path)),
    ("VIRTIOFWD_SOCKET_FNAME_PATTERN", Meaning::Text(|layer| &mut layer.vhost_socket)),
    ("VIRTIOFWD_VHOST_CLIENT", Meaning::Switch(|layer| &mut layer.vhostuser_client)),
    // These are new.
    ("VIRTIOFWD_RELAYS", Meaning::Text(|layer| &mut layer.relays)),
    ("VIRTIOFWD_DEVICES", Meaning::List(|layer| &mut layer.add_device)),
    ("VIRTIOFWD_CONTROL_SOCKET", Meaning::Text(|layer| &mut layer.control_socket)),
    ("VIRTIOFWD_CONTROL_GROUP", Meaning::Text(|layer| &mut layer.control_group)),
    ("VIRTIOFWD_METRICS_LISTEN", Meaning::Text(|layer| &mut layer.metrics_listen)),
    ("VIRTIOFWD_IDLE", Meaning::Text(|layer| &mut layer.idle)),
    // These are history.
    ("VIRTIOFWD_ZMQ_CONFIG_EP", Meaning::Obsolete(ZMQ)),
    ("VIRTIOFWD_ZMQ_PORT_CONTROL_EP", Meaning::Obsolete(ZMQ)),
    ("VIRTIOFWD_ZMQ_STATS_EP", Meaning::Obsolete(ZMQ)),
    ("VIRTIOFWD_ZMQ_CORE_SCHED_EP", Meaning::Obsolete(ZMQ)),
    ("VIRTIOFWD_IPC_PORT_CONTROL", Meaning::Obsolete("the control socket replaces it")),
    ("VIRTIOFWD_OVSDB_SOCK_PATH", Meaning::Obsolete("OVSDB is not watched")),
    (
        "VIRTIOFWD_HUGETLBFS_MOUNT_POINT",
        Meaning::Obsolete("hugepages are taken from the kernel without a mount"),
    ),
    ("VIRTIOFWD_CPU_NIC_SAME_NUMA", Meaning::Obsolete("no memory is reserved in advance")),
    ("VIRTIOFWD_PID_DIR", Meaning::Obsolete("no PID file is written")),
    ("VIRTIOFWD_BINARY", Meaning::Obsolete("the unit names the program")),
    ("VIRTIOFWD_MASTER_LCORE", Meaning::Obsolete("there is no main worker")),
    (
        "VIRTIOFWD_ZERO_COPY",
        Meaning::Obsolete("it is set relay by relay, in config.toml: zero-copy = \"tx\" in a [[relay]]"),
    ),
    ("VIO4WD_CORE_SCHED_ENABLE", Meaning::Obsolete(BALANCER)),
    ("VIO4WD_CORE_SCHED_SENSITIVITY", Meaning::Obsolete(BALANCER)),
    ("VIO4WD_CORE_SCHED_LOG_LEVEL", Meaning::Obsolete(BALANCER)),
    ("VIO4WD_CORE_SCHED_POLL_INTERVAL", Meaning::Obsolete(BALANCER)),
    ("VIO4WD_CORE_SCHED_GLOBAL_NUMA_OPT", Meaning::Obsolete(BALANCER)),
];

/// What a defaults file says.
#[derive(Debug, Default)]
pub(super) struct DefaultsFile {
    pub(super) layer: Layer,
    pub(super) notices: Vec<Notice>,
    pub(super) errors: Vec<String>,
}

/// Reads `text`, the contents of the file `path`.
pub(super) fn parse(path: &Path, text: &str) -> DefaultsFile {
    let mut file = DefaultsFile::default();
    // Editors of other systems put a mark there.
    let (assignments, other) = shell::parse(text.strip_prefix('\u{feff}').unwrap_or(text));
    for other in other {
        file.other(path, &other);
    }
    for (index, assignment) in assignments.iter().enumerate() {
        // As in a shell, the last one counts.
        if !assignments[index + 1..].iter().any(|later| later.name == assignment.name) {
            file.take(path, assignment);
        }
    }
    file
}

impl DefaultsFile {
    fn warn(&mut self, text: String) {
        self.notices.push(Notice::Warning(text));
    }

    /// What is no assignment has no effect. If it looks as if somebody meant it to have one, that is a mistake.
    fn other(&mut self, path: &Path, other: &Other) {
        let Other { line, text } = other;
        let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let setting = words.find(|word| {
            NAMES.iter().any(|(name, meaning)| name == word && !matches!(meaning, Meaning::Obsolete(_)))
        });
        match setting {
            Some(name) => self.errors.push(format!(
                "{}:{line}: {name} is not assigned in a way that is understood here; write {name}=VALUE, or \
                 {name}=(VALUE VALUE) for a list, and nothing else on the line",
                path.display()
            )),
            None => self.warn(format!("{}:{line}: not an assignment; nothing is executed", path.display())),
        }
    }

    fn take(&mut self, path: &Path, assignment: &Assignment) {
        let Assignment { name, value, line } = assignment;
        let origin = Origin::File { path: path.to_owned(), line: *line, key: name.clone() };
        let Some((_, meaning)) = NAMES.iter().find(|(known, _)| known == name) else {
            // Other variables may serve other programs that read the file.
            if name.starts_with("VIRTIOFWD_") || name.starts_with("VIO4WD_") {
                self.warn(format!("{origin} is unknown and has no effect; is it misspelt?"));
            }
            return;
        };
        if let Meaning::Obsolete(why) = meaning {
            if *value != Ok(Value::Word(String::new())) {
                self.notices.push(Notice::Info(format!("{origin} has no effect: {why}")));
            }
            return;
        }
        let words = match value {
            Ok(Value::Word(word)) => vec![word.clone()],
            Ok(Value::Array(words)) => words.clone(),
            Err(why) => {
                self.errors.push(format!("{origin} {why}"));
                return;
            }
        };
        let layer = &mut self.layer;
        match meaning {
            Meaning::Switch(field) => {
                let on = words.iter().any(|word| !word.is_empty());
                let off = ["n", "no", "0", "false", "off"];
                if let Some(word) =
                    words.iter().find(|word| off.contains(&word.to_ascii_lowercase().as_str()))
                {
                    self.notices.push(Notice::Info(format!(
                        "{origin}: on, because it is not empty ('{word}'); leave it empty to turn it off"
                    )));
                }
                *field(layer) = on.then(|| Sourced::new(true, origin));
            }
            Meaning::List(field) => {
                let words = words.iter().flat_map(|word| word.split_whitespace());
                let list: List = words.map(|word| Sourced::new(word.to_owned(), origin.clone())).collect();
                *field(layer) = (!list.is_empty()).then_some(list);
            }
            Meaning::Text(field) => match words.as_slice() {
                [] => {}
                [word] if word.is_empty() => {}
                [word] => *field(layer) = Some(Sourced::new(word.clone(), origin)),
                _ => self.errors.push(format!("{origin} is an array, and takes one value")),
            },
            Meaning::Obsolete(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> DefaultsFile {
        parse(Path::new("/etc/default/virtioforwarder"), text)
    }

    /// The assignments of the file that the C daemon shipped.
    const SHIPPED: &str = "\
VIRTIOFWD_CPU_MASK=1,2
VIRTIOFWD_LOG_LEVEL=6
VIRTIOFWD_IPC_PORT_CONTROL=y
VIRTIOFWD_OVSDB_SOCK_PATH=
VIRTIOFWD_JUMBO=y
VIRTIOFWD_MRGBUF=y
VIRTIOFWD_TSO=
VIRTIOFWD_SOCKET_OWNER=
VIRTIOFWD_SOCKET_GROUP=
VIRTIOFWD_HUGETLBFS_MOUNT_POINT=/dev/hugepages
VIRTIOFWD_STATIC_VFS=
VIRTIOFWD_DYNAMIC_SOCKETS=
VIRTIOFWD_CPU_NIC_SAME_NUMA=
VIRTIOFWD_VFIO_VF_TOKEN=
VIO4WD_CORE_SCHED_ENABLE=true
VIO4WD_CORE_SCHED_SENSITIVITY=
VIO4WD_CORE_SCHED_LOG_LEVEL=6
VIO4WD_CORE_SCHED_POLL_INTERVAL=
VIO4WD_CORE_SCHED_GLOBAL_NUMA_OPT=
VIRTIOFWD_CPU_PINS=
VIRTIOFWD_PID_DIR=/var/run
VIRTIOFWD_ZMQ_CONFIG_EP=
VIRTIOFWD_ZMQ_PORT_CONTROL_EP=ipc:///var/run/virtio-forwarder/port_control
VIRTIOFWD_ZMQ_STATS_EP=ipc:///var/run/virtio-forwarder/stats
VIRTIOFWD_ZMQ_CORE_SCHED_EP=ipc:///var/run/virtio-forwarder/core_sched
VIRTIOFWD_SOCKET_DIR=/tmp/virtio-forwarder
VIRTIOFWD_SOCKET_FNAME_PATTERN=
VIRTIOFWD_BINARY=@BINDIR@/virtio-forwarder
VIRTIOFWD_MASTER_LCORE=
VIRTIOFWD_VHOST_CLIENT=y
VIRTIOFWD_ZERO_COPY=
VIRTIOFWD_BIND_VFIO_PCI=
";

    #[test]
    fn the_file_that_the_c_daemon_shipped() {
        let DefaultsFile { layer, notices, errors } = read(SHIPPED);
        assert_eq!(errors, [""; 0]);
        let said: Vec<_> = notices
            .iter()
            .map(|notice| match notice {
                Notice::Info(text) => text.split(' ').nth(1).unwrap(),
                Notice::Warning(text) => panic!("{text}"),
            })
            .collect();
        assert_eq!(
            said,
            [
                "VIRTIOFWD_IPC_PORT_CONTROL",
                "VIRTIOFWD_HUGETLBFS_MOUNT_POINT",
                "VIO4WD_CORE_SCHED_ENABLE",
                "VIO4WD_CORE_SCHED_LOG_LEVEL",
                "VIRTIOFWD_PID_DIR",
                "VIRTIOFWD_ZMQ_PORT_CONTROL_EP",
                "VIRTIOFWD_ZMQ_STATS_EP",
                "VIRTIOFWD_ZMQ_CORE_SCHED_EP",
                "VIRTIOFWD_BINARY",
            ]
        );
        let text = |text: Option<Text>| text.map(|text| text.value);
        assert_eq!(text(layer.cpus).as_deref(), Some("1,2"));
        assert_eq!(text(layer.loglevel).as_deref(), Some("6"));
        assert_eq!(text(layer.vhost_path).as_deref(), Some("/tmp/virtio-forwarder"));
        assert!(
            layer.enable_jumbo.is_some() && layer.enable_mrgbuf.is_some() && layer.vhostuser_client.is_some()
        );
        assert_eq!((layer.enable_tso, layer.dynamic_sockets), (None, None));
        assert_eq!((layer.add_pci_vf, layer.virtio_cpu, layer.vhost_username), (None, None, None));
    }

    #[test]
    fn arrays_and_single_words_are_lists() {
        for text in ["(05:08.1=1 05:08.2=2)", "'05:08.1=1 05:08.2=2'"] {
            let list = read(&format!("\n\nVIRTIOFWD_STATIC_VFS={text}\n")).layer.add_pci_vf.unwrap();
            assert_eq!(
                list.iter().map(|item| item.value.as_str()).collect::<Vec<_>>(),
                ["05:08.1=1", "05:08.2=2"]
            );
            assert_eq!(list[0].origin.to_string(), "/etc/default/virtioforwarder:3: VIRTIOFWD_STATIC_VFS");
        }
        assert_eq!(read("VIRTIOFWD_CPU_PINS=()\n").layer.virtio_cpu, None);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_name() {
        let file = read("\u{feff}VIRTIOFWD_CPU_MASK=1\n");
        assert_eq!((file.layer.cpus.unwrap().value.as_str(), file.notices), ("1", vec![]));
    }

    #[test]
    fn switches_that_look_turned_off_are_told() {
        for word in ["n", "no", "0", "false", "Off"] {
            let file = read(&format!("VIRTIOFWD_MRGBUF={word}\n"));
            assert!(file.layer.enable_mrgbuf.unwrap().value);
            assert!(
                matches!(&file.notices[..], [Notice::Info(text)] if text.contains("VIRTIOFWD_MRGBUF: on, because")),
                "{:?}",
                file.notices
            );
        }
        assert_eq!(read("VIRTIOFWD_MRGBUF=y VIRTIOFWD_JUMBO=\n").notices, []);
    }

    #[test]
    fn the_last_assignment_counts() {
        let file = read("VIRTIOFWD_CPU_MASK=1\nVIRTIOFWD_JUMBO=y\nVIRTIOFWD_CPU_MASK=2\nVIRTIOFWD_JUMBO=\n");
        assert_eq!(file.layer.cpus.unwrap().value, "2");
        assert_eq!(file.layer.enable_jumbo, None);
    }

    #[test]
    fn mistakes_are_told_by_file_and_line() {
        let file = read("VIRTIOFWD_CPU_MSAK=1\nPATH=$PATH:/x\necho hello\nVIRTIOFWD_SOCKET_DIR=$HOME\n");
        assert_eq!(
            file.notices,
            [
                Notice::Warning("/etc/default/virtioforwarder:3: not an assignment; nothing is executed".to_owned()),
                Notice::Warning(
                    "/etc/default/virtioforwarder:1: VIRTIOFWD_CPU_MSAK is unknown and has no effect; is it misspelt?"
                        .to_owned()
                ),
            ]
        );
        assert_eq!(file.errors.len(), 1);
        assert!(
            file.errors[0].starts_with("/etc/default/virtioforwarder:4: VIRTIOFWD_SOCKET_DIR has a shell")
        );
        for text in [
            "readonly VIRTIOFWD_CPU_MASK=3",
            "declare -a VIRTIOFWD_CPU_MASK=(1 2)",
            "VIRTIOFWD_CPU_MASK = 1",
            "VIRTIOFWD_CPU_MASK[1]=2",
            "  : ${VIRTIOFWD_CPU_MASK:=1}",
        ] {
            let file = read(text);
            assert_eq!((file.layer, file.notices), (Layer::default(), vec![]), "{text}");
            assert!(
                file.errors.len() == 1 && file.errors[0].contains(":1: VIRTIOFWD_CPU_MASK is not assigned"),
                "{text}: {:?}",
                file.errors
            );
        }
        assert_eq!(read("readonly VIRTIOFWD_PID_DIR=/x MY_VIRTIOFWD_CPU_MASK").errors, [""; 0]);
        assert!(read("VIRTIOFWD_CPU_MASK=(1 2)").errors[0].contains("takes one value"));
    }
}
