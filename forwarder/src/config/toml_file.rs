//! The TOML file: the long options without their dashes, as keys.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

use super::layer::{Layer, List, Origin, RelayTable, Sourced, Switch, Text};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    cpus: Option<Spanned<CpuWords>>,
    vhost_path: Option<Spanned<Words>>,
    vhost_socket: Option<Spanned<Words>>,
    vhost_username: Option<Spanned<Words>>,
    vhost_groupname: Option<Spanned<Words>>,
    vhostuser_client: Option<Spanned<bool>>,
    dynamic_sockets: Option<Spanned<bool>>,
    relays: Option<Spanned<Words>>,
    bind_vfio_pci: Option<Spanned<Words>>,
    add_pci_vf: Option<Spanned<Words>>,
    add_device: Option<Spanned<Words>>,
    virtio_cpu: Option<Spanned<Words>>,
    enable_mrgbuf: Option<Spanned<bool>>,
    enable_jumbo: Option<Spanned<bool>>,
    enable_tso: Option<Spanned<bool>>,
    vfio_vf_token: Option<Spanned<Words>>,
    loglevel: Option<Spanned<Words>>,
    control_socket: Option<Spanned<Words>>,
    control_group: Option<Spanned<Words>>,
    metrics_listen: Option<Spanned<Words>>,
    idle: Option<Spanned<Words>>,
    relay: Option<Vec<Relay>>,
}

/// A `[[relay]]` table: settings of one relay, over those for all.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Relay {
    id: Spanned<Words>,
    vhostuser_client: Option<Spanned<bool>>,
    mtu: Option<Spanned<Words>>,
    zero_copy: Option<Spanned<Words>>,
    queue_pairs: Option<Spanned<Words>>,
    mac: Option<Spanned<Words>>,
    vlans: Option<Spanned<Words>>,
}

/// A string, a number, or a list of them: `"1,2"`, `64`, `[1, 2]`.
struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a number, or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Words, E> {
                Ok(Words(vec![text.to_owned()]))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Words, E> {
                Ok(Words(vec![number.to_string()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(Words(inner)) = list.next_element()? {
                    words.extend(inner);
                }
                Ok(Words(words))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// CPUs: a string or a list. A number alone could be a mask as well as a CPU, and TOML does not tell how it was written;
/// so those in the list are kept with their places.
struct CpuWords(Vec<Spanned<Words>>);

impl<'de> Deserialize<'de> for CpuWords {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = CpuWords;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(CPUS_EXPECTED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CpuWords, E> {
                Ok(CpuWords(vec![Spanned::new(0..0, Words(vec![text.to_owned()]))]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<CpuWords, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = list.next_element()? {
                    words.push(word);
                }
                Ok(CpuWords(words))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

const CPUS_EXPECTED: &str = r#"a string ("1,2", or the mask "0x6") or a list of decimal numbers ([1, 2])"#;

/// Reads `text`, the contents of the file `path`.
pub(super) fn parse(path: &Path, text: &str) -> Result<Layer, String> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        format!("{}:{line}: {}", path.display(), error.message())
    })?;
    let origin = |key: &str, offset: usize| Origin::File {
        path: path.to_owned(),
        line: line_of(text, offset),
        key: key.to_owned(),
    };
    let cpus = match file.cpus {
        None => None,
        Some(value) => {
            let origin = origin("cpus", value.span().start);
            let words = value.into_inner().0;
            let written = |word: &Spanned<Words>| text.get(word.span()).unwrap_or_default().as_bytes();
            if words.iter().any(|word| matches!(written(word), [b'0', b'x' | b'o' | b'b', ..])) {
                return Err(format!("{origin}: {CPUS_EXPECTED} is expected"));
            }
            let words: Vec<String> = words.into_iter().flat_map(|word| word.into_inner().0).collect();
            Some(Sourced::new(words.join(","), origin))
        }
    };
    // Where one word is expected, a list is the same with commas; the checks find what makes no sense.
    let word = |key: &str, value: Option<Spanned<Words>>| -> Option<Text> {
        value.map(|value| {
            let origin = origin(key, value.span().start);
            Sourced::new(value.into_inner().0.join(","), origin)
        })
    };
    let switch = |key: &str, value: Option<Spanned<bool>>| -> Option<Switch> {
        value.map(|value| Sourced::new(*value.get_ref(), origin(key, value.span().start)))
    };
    let list = |key: &str, value: Option<Spanned<Words>>| -> Option<List> {
        value.map(|value| {
            let origin = origin(key, value.span().start);
            value.into_inner().0.into_iter().map(|word| Sourced::new(word, origin.clone())).collect()
        })
    };
    let relay = |table: Relay| -> Option<RelayTable> {
        Some(RelayTable {
            id: word("id", Some(table.id))?,
            vhostuser_client: switch("vhostuser-client", table.vhostuser_client),
            mtu: word("mtu", table.mtu),
            zero_copy: word("zero-copy", table.zero_copy),
            queue_pairs: word("queue-pairs", table.queue_pairs),
            mac: word("mac", table.mac),
            vlans: list("vlans", table.vlans),
        })
    };
    Ok(Layer {
        cpus,
        vhost_path: word("vhost-path", file.vhost_path),
        vhost_socket: word("vhost-socket", file.vhost_socket),
        vhost_username: word("vhost-username", file.vhost_username),
        vhost_groupname: word("vhost-groupname", file.vhost_groupname),
        vhostuser_client: switch("vhostuser-client", file.vhostuser_client),
        dynamic_sockets: switch("dynamic-sockets", file.dynamic_sockets),
        relays: word("relays", file.relays),
        bind_vfio_pci: list("bind-vfio-pci", file.bind_vfio_pci),
        add_pci_vf: list("add-pci-vf", file.add_pci_vf),
        add_device: list("add-device", file.add_device),
        virtio_cpu: list("virtio-cpu", file.virtio_cpu),
        enable_mrgbuf: switch("enable-mrgbuf", file.enable_mrgbuf),
        enable_jumbo: switch("enable-jumbo", file.enable_jumbo),
        enable_tso: switch("enable-tso", file.enable_tso),
        vfio_vf_token: word("vfio-vf-token", file.vfio_vf_token),
        loglevel: word("loglevel", file.loglevel),
        control_socket: word("control-socket", file.control_socket),
        control_group: word("control-group", file.control_group),
        metrics_listen: word("metrics-listen", file.metrics_listen),
        idle: word("idle", file.idle),
        relay: file.relay.map(|tables| tables.into_iter().filter_map(relay).collect()),
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Layer, String> {
        parse(Path::new("c.toml"), text)
    }

    #[test]
    fn keys_are_the_long_options() {
        let layer = read(
            "# comment\ncpus = [1, 2]\nrelays = 8\nidle = \"poll\"\nenable-jumbo = true\n\
             add-device = [\"tap:vm1=1\", \"null=2\"]\nvirtio-cpu = \"0:1,2;1:2\"\n",
        )
        .unwrap();
        let cpus = layer.cpus.unwrap();
        assert_eq!((cpus.value.as_str(), cpus.origin.to_string().as_str()), ("1,2", "c.toml:2: cpus"));
        assert_eq!(layer.relays.unwrap().value, "8");
        assert_eq!(layer.add_device.unwrap()[1].value, "null=2");
        assert_eq!(layer.virtio_cpu.unwrap().len(), 1);
        assert!(layer.enable_jumbo.unwrap().value);
        assert_eq!(layer.vhost_path, None);
    }

    #[test]
    fn cpus_are_a_string_or_decimal_numbers() {
        for (text, cpus) in [
            ("[1, 2]", "1,2"),
            ("[10]", "10"),
            ("\"0x6\"", "0x6"),
            ("[\"0x6\"]", "0x6"),
            ("['1-3', 0]", "1-3,0"),
        ] {
            assert_eq!(read(&format!("cpus = {text}")).unwrap().cpus.unwrap().value, cpus, "{text}");
        }
    }

    #[test]
    fn single_relays_have_tables() {
        let layer =
            read("relays = 8\n[[relay]]\nid = 3\nvhostuser-client = true\nmtu = 9000\n[[relay]]\nid = 4\n")
                .unwrap();
        let [three, four] = &layer.relay.unwrap()[..] else { panic!("two tables") };
        assert_eq!((three.id.value.as_str(), four.id.value.as_str()), ("3", "4"));
        assert_eq!(four.id.origin.to_string(), "c.toml:7: id");
        assert!(three.vhostuser_client.as_ref().unwrap().value);
        assert_eq!(three.mtu.as_ref().unwrap().value, "9000");
        assert_eq!((&four.vhostuser_client, &four.mtu), (&None, &None));
        assert_eq!(read("").unwrap().relay, None);
    }

    #[test]
    fn mistakes_are_told_by_line_and_key() {
        for (text, says) in [
            ("cpus = [1]\ncpu = 2\n", "c.toml:2: unknown field `cpu`"),
            ("\n\nenable-jumbo = \"yes\"\n", "c.toml:3: "),
            ("relays = { a = 1 }\n", "a string, a number, or a list"),
            ("cpus = 0x2\n", "decimal numbers ([1, 2])"),
            ("cpus = 2\n", "decimal numbers ([1, 2])"),
            ("\ncpus = [1, 0x2]\n", "c.toml:2: cpus: a string"),
            ("cpus = \n", "c.toml:1: "),
            ("relays = 8\n[[relay]]\nid = 1\nmut = 9000\n", "c.toml:4: unknown field `mut`"),
            ("relays = 8\n[[relay]]\nmtu = 9000\n", "c.toml:2: missing field `id`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
