//! The container's two files, read without an engine: that they are what an engine can read, name
//! what the package has, and promise what the unit does.

use std::collections::BTreeMap;
use std::path::Path;

use saphyr_parser::{Event, Parser};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every value of a YAML file under its path, as `services.pc.ports.0`; what an alias stands for
/// is there under both paths.
fn flat(text: &str) -> BTreeMap<String, String> {
    enum Level {
        Map(String, Option<String>),
        List(String, usize),
    }
    /// The path of the next value; `None` where a key comes.
    fn path(levels: &mut [Level], text: Option<&str>) -> Option<String> {
        match levels.last_mut() {
            None => Some(String::new()),
            Some(Level::List(path, n)) => {
                *n += 1;
                Some(format!("{path}.{}", *n - 1))
            }
            Some(Level::Map(path, key)) => match key.take() {
                Some(key) => Some(format!("{path}.{key}")),
                None => {
                    *key = Some(text.expect("a key is a text").to_owned());
                    None
                }
            },
        }
    }
    let (mut values, mut levels, mut anchors) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
    for event in Parser::new_from_str(text) {
        match event.expect("it is YAML").0 {
            Event::MappingStart(anchor, _) => {
                let path = path(&mut levels, None).expect("no map is a key");
                anchors.insert(anchor, path.clone());
                levels.push(Level::Map(path, None));
            }
            Event::SequenceStart(..) => {
                let path = path(&mut levels, None).expect("no list is a key");
                levels.push(Level::List(path, 0));
            }
            Event::MappingEnd | Event::SequenceEnd => drop(levels.pop()),
            Event::Scalar(value, ..) => {
                if let Some(path) = path(&mut levels, Some(&value)) {
                    values.insert(path, value.into_owned());
                }
            }
            Event::Alias(anchor) => {
                let path = path(&mut levels, None).expect("no alias is a key");
                let path = path.strip_suffix(".<<").expect("aliases are merged");
                let from = format!("{}.", anchors[&anchor]);
                let merged: Vec<_> = values
                    .range(from.clone()..)
                    .take_while(|(key, _)| key.starts_with(&from))
                    .map(|(key, value)| (format!("{path}.{}", &key[from.len()..]), value.clone()))
                    .collect();
                values.extend(merged);
            }
            _ => {}
        }
    }
    values
}

fn of_unit(key: &str) -> String {
    let unit = read("systemd/jetforge.service");
    let line = unit.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
    line.unwrap_or_else(|| panic!("the unit has no {key}")).to_owned()
}

#[test]
fn the_compose_file_bounds_the_service_as_the_unit_does() {
    let compose = flat(&read("jetpack/container/compose.yaml"));
    for service in [".services.pc", ".services.device"] {
        let value = |key: &str| {
            let path = format!("{service}.{key}");
            compose.get(&path).unwrap_or_else(|| panic!("{path} in {compose:?}")).as_str()
        };
        assert_eq!(value("pids_limit"), of_unit("TasksMax"));
        assert_eq!(value("stop_grace_period"), format!("{}s", of_unit("TimeoutStopSec")));
        assert_eq!(value("ulimits.nofile"), of_unit("LimitNOFILE"));
        assert_eq!(value("ulimits.core"), of_unit("LimitCORE"));
        assert_eq!(value("restart"), of_unit("Restart"));
        assert_eq!((value("cap_drop.0"), value("read_only")), ("ALL", "true"));
        assert_eq!(value("security_opt.0"), "no-new-privileges:true");
        let config: toml::Table = read("systemd/config.toml").parse().unwrap();
        let port = config["server"]["port"].as_integer().unwrap();
        assert_eq!(value("ports.0"), format!("{port}:{port}"));
        let also = config["server"]["also_ports"][0].as_integer().unwrap();
        assert_eq!(value("ports.1"), format!("{also}:{also}"));
        for (idx, (volume, dir)) in
            [("state", "/var/lib/jetforge"), ("cache", "/var/cache/jetforge")].iter().enumerate()
        {
            assert_eq!(value(&format!("volumes.{idx}")), format!("{volume}:{dir}"));
            assert!(compose.contains_key(&format!(".volumes.{volume}")), "{volume}");
        }
    }
    let only = |service: &str| -> Vec<&str> {
        let own = compose.keys().filter_map(|key| key.strip_prefix(service));
        own.filter(|key| !compose.contains_key(&format!(".x-service{key}"))).collect()
    };
    assert_eq!(only(".services.pc"), [".profiles.0"]);
    let of_device = [".group_add.0", ".mem_limit", ".profiles.0", ".runtime"];
    assert_eq!(only(".services.device"), of_device);
}

/// Instructions of a Containerfile, those of many lines in one.
fn instructions(text: &str) -> Vec<(String, String)> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let split = |line: &str| line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
    joined.lines().filter_map(split).collect()
}

#[test]
fn the_containerfile_takes_from_the_package_what_is_there() {
    let all = instructions(&read("jetpack/container/Containerfile"));
    let known = "ARG FROM COPY RUN ENV USER VOLUME EXPOSE ENTRYPOINT CMD STOPSIGNAL";
    assert!(all.iter().all(|(name, _)| known.split(' ').any(|k| k == name)), "{all:?}");
    let of = |name: &str| -> Vec<&str> {
        all.iter().filter(|(own, _)| own == name).map(|(_, text)| text.as_str()).collect()
    };
    let run = of("RUN").concat();
    let deb = read("jetpack/deb.sh");
    let taken: Vec<&str> =
        run.split_whitespace().filter_map(|word| word.strip_prefix("/tmp/jetforge/")).collect();
    assert_eq!(taken, ["usr/bin/jetforge", "etc/jetforge/config.toml"]);
    assert!(taken.iter().all(|file| deb.contains(file)), "the package has them");
    // A name of the package, as jetpack/deb.sh makes it, is what is copied.
    assert!(deb.contains("file=$out/jetforge_${version}_$arch.deb"));
    assert_eq!(of("COPY"), ["jetforge_*_${ARCH}.deb /tmp/"]);
    assert_eq!((of("USER"), of("EXPOSE")), (vec!["jetforge"], vec!["8080 8888"]));
    assert_eq!(of("ENTRYPOINT"), ["[\"/usr/bin/jetforge\"]"]);
    assert_eq!(of("VOLUME"), ["[\"/var/lib/jetforge\", \"/var/cache/jetforge\"]"]);
    assert!(run.contains("-o jetforge -g jetforge -m 750 /var/lib/jetforge /var/cache/jetforge"));
    assert!(of("ENV")[0].contains("JETFORGE_ROLE=service"), "{:?}", of("ENV"));
}
