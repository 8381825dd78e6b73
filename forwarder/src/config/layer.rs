//! One place where settings come from, as raw text, and how such places lie over each other.

use std::fmt;
use std::path::PathBuf;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// On the command line: the option.
    Flag(&'static str),
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The name of the setting there.
        key: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(option) => f.write_str(option),
            Self::File { path, line, key } => write!(f, "{}:{line}: {key}", path.display()),
        }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sourced<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
}

impl<T> Sourced<T> {
    pub(super) fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }
}

/// One word.
pub(super) type Text = Sourced<String>;
/// On or off.
pub(super) type Switch = Sourced<bool>;
/// Several words. A list in a higher place replaces the one in a lower place.
pub(super) type List = Vec<Sourced<String>>;
/// What is said of single relays.
pub(super) type Tables = Vec<RelayTable>;

/// What is said of one relay.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RelayTable {
    pub(super) id: Text,
    pub(super) vhostuser_client: Option<Switch>,
    pub(super) mtu: Option<Text>,
    pub(super) zero_copy: Option<Text>,
    pub(super) queue_pairs: Option<Text>,
    pub(super) mac: Option<Text>,
    pub(super) vlans: Option<List>,
}

macro_rules! layer {
    ($($field:ident: $kind:ty,)*) => {
        /// The settings of one place; `None` where it says nothing.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(super) struct Layer {
            $(pub(super) $field: Option<$kind>,)*
        }

        impl Layer {
            /// What holds where this place lies over `lower`.
            pub(super) fn over(self, lower: Self) -> Self {
                Self { $($field: self.$field.or(lower.$field),)* }
            }
        }
    };
}

layer! {
    cpus: Text,
    vhost_path: Text,
    vhost_socket: Text,
    vhost_username: Text,
    vhost_groupname: Text,
    vhostuser_client: Switch,
    dynamic_sockets: Switch,
    relays: Text,
    bind_vfio_pci: List,
    add_pci_vf: List,
    add_device: List,
    virtio_cpu: List,
    enable_mrgbuf: Switch,
    enable_jumbo: Switch,
    enable_tso: Switch,
    vfio_vf_token: Text,
    loglevel: Text,
    control_socket: Text,
    control_group: Text,
    metrics_listen: Text,
    idle: Text,
    relay: Tables,
}

/// Something to be said once the log is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// For the record: a setting that has no effect here.
    Info(String),
    /// Somebody should look at it: an unknown name, a line that is not understood.
    Warning(String),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Info(text) => write!(f, "note: {text}"),
            Self::Warning(text) => write!(f, "warning: {text}"),
        }
    }
}

impl Notice {
    /// Writes it to the log.
    pub fn log(&self) {
        match self {
            Self::Info(text) => tracing::info!("{text}"),
            Self::Warning(text) => tracing::warn!("{text}"),
        }
    }
}
