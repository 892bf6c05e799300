//! Every module of the program and every path that a file mentions, and the questions asked of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::paths::{Lookup, Module, Target};
use super::reader::FileReader;
use super::{Client, FILE_LINES_MAX, FUNCTION_LINES_MAX, Floors};
use crate::source_tree::{SourceFile, parse_sources, room_of};

/// Ends of one path in all name spaces, and the modules on its way.
#[derive(Clone, Default)]
pub(super) struct Resolution {
    pub(super) targets: BTreeSet<Target>,
    pub(super) modules: BTreeSet<Vec<String>>,
}

/// A path that stands in a file.
pub(super) struct Mention {
    pub(super) file: usize,
    pub(super) line: usize,
    pub(super) module: Vec<String>,
    pub(super) path: Vec<String>,
    pub(super) is_use: bool,
    pub(super) is_reexport: bool,
}

/// A function of more than [`FUNCTION_LINES_MAX`] lines.
pub(super) struct LongFunction {
    pub(super) file: usize,
    pub(super) name: String,
    pub(super) lines: usize,
}

/// Every module, and every path that a file mentions.
#[derive(Default)]
pub(super) struct Graph {
    pub(super) files: Vec<FileFacts>,
    pub(super) modules: BTreeMap<Vec<String>, Module>,
    pub(super) mentions: Vec<(Mention, Resolution)>,
    pub(super) long_functions: Vec<LongFunction>,
}

pub(super) struct FileFacts {
    pub(super) path: String,
    pub(super) room: String,
    pub(super) module: Vec<String>,
    pub(super) lines: usize,
    pub(super) code: String,
}

impl Graph {
    pub(super) fn new(files: &[SourceFile]) -> Self {
        let mut graph = Self::default();
        let mut mentions = Vec::new();
        for (index, file) in files.iter().enumerate() {
            let mut reader = FileReader { graph: &mut graph, mentions: &mut mentions, file: index, module: Vec::new() };
            reader.read_module(file.module.clone(), &file.items);
            let code: Vec<&str> =
                file.lines.iter().map(String::as_str).filter(|line| !line.trim_start().starts_with("//")).collect();
            graph.files.push(FileFacts {
                path: file.path.clone(),
                room: file.room().to_owned(),
                module: file.module.clone(),
                lines: file.lines.len(),
                code: code.join("\n"),
            });
        }
        let mut known = HashMap::new();
        for mention in mentions {
            let key = (mention.module.clone(), mention.path.clone(), mention.is_use);
            let resolution = known.entry(key).or_insert_with(|| {
                let mut lookup = Lookup::new(&graph.modules);
                let follow = if mention.is_use { Lookup::resolve_use } else { Lookup::resolve };
                let targets = follow(&mut lookup, &mention.module, &mention.path);
                Resolution { targets, modules: lookup.named }
            });
            let resolution = resolution.clone();
            graph.mentions.push((mention, resolution));
        }
        graph
    }

    pub(super) fn parse<P: AsRef<str>, T: AsRef<str>>(sources: &[(P, T)]) -> Self {
        Self::new(&parse_sources(sources))
    }

    pub(super) fn place(&self, mention: &Mention) -> String {
        format!("src/{}:{}: `{}`", self.files[mention.file].path, mention.line, mention.path.join("::"))
    }

    /// Files that each file imports.
    pub(super) fn file_imports(&self) -> Vec<BTreeSet<usize>> {
        let mut imports = vec![BTreeSet::new(); self.files.len()];
        for (mention, resolution) in self.mentions.iter().filter(|(mention, _)| !mention.is_reexport) {
            let from = &self.files[mention.file];
            let is_root = room_of(&from.path, from.path.rfind('/').map_or("", |at| &from.path[..=at])).is_empty();
            for target in &resolution.targets {
                let Target::Item(to) = target else { continue };
                let is_below = is_root && self.files[*to].module.starts_with(&from.module);
                if *to != mention.file && !is_below {
                    imports[mention.file].insert(*to);
                }
            }
        }
        imports
    }

    /// Circles of files, each sorted.
    pub(super) fn circles(&self) -> Vec<Vec<&str>> {
        let imports = self.file_imports();
        let circles = strong_components(&imports).into_iter().filter(|component| component.len() > 1);
        let mut circles: Vec<Vec<&str>> = circles
            .map(|component| {
                let mut paths: Vec<&str> = component.iter().map(|file| self.files[*file].path.as_str()).collect();
                paths.sort_unstable();
                paths
            })
            .collect();
        circles.sort();
        circles
    }

    /// Rooms of a folder that stand on no floor.
    pub(super) fn unknown_rooms(&self, floors: &Floors) -> BTreeSet<&str> {
        let rooms = self.files.iter().map(|file| room_of(&file.path, floors.folder));
        rooms.filter(|room| !room.is_empty() && floors.floor(room).is_none()).collect()
    }

    /// Imports that do not go down. The folder's own module stands above its rooms.
    pub(super) fn upward_imports(&self, floors: &Floors) -> BTreeSet<String> {
        let mut wrong = BTreeSet::new();
        let folder: Vec<&str> = floors.folder.split('/').filter(|part| !part.is_empty()).collect();
        for (mention, resolution) in &self.mentions {
            let from = room_of(&self.files[mention.file].path, floors.folder);
            let Some(own) = floors.floor(from) else { continue };
            let defined = resolution.targets.iter().filter_map(|target| match target {
                Target::Item(file) => Some(&self.files[*file].path).filter(|path| path.starts_with(floors.folder)),
                _ => None,
            });
            let defined = defined.map(|path| room_of(path, floors.folder));
            let named = resolution.modules.iter().filter(|module| module.len() > folder.len());
            let named = named.filter(|module| module.iter().zip(&folder).all(|(part, folder)| part == folder));
            for to in defined.chain(named.map(|module| module[folder.len()].as_str())) {
                if to != from && floors.floor(to).unwrap_or(floors.floors.len()) >= own {
                    let to = if to.is_empty() { "the module above" } else { to };
                    wrong.insert(format!("{}: `{from}` must not import `{to}`", self.place(mention)));
                }
            }
        }
        wrong
    }

    pub(super) fn misplaced_clients(&self, clients: &[Client]) -> BTreeSet<String> {
        let mut wrong = BTreeSet::new();
        for (mention, resolution) in &self.mentions {
            let room = self.files[mention.file].room.as_str();
            let external = resolution.targets.iter().filter_map(|target| match target {
                Target::External(path) => Some(path.join("::")),
                _ => None,
            });
            for path in external {
                let is_of = |client: &str| {
                    path.strip_prefix(client).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
                };
                for (paths, rooms) in clients.iter().filter(|(paths, _)| paths.iter().any(|client| is_of(client))) {
                    if !rooms.contains(&room) {
                        let rooms = rooms.join(", ");
                        wrong.insert(format!("{}: `{}` belongs to {rooms}", self.place(mention), paths[0]));
                    }
                }
            }
        }
        wrong
    }

    pub(super) fn long_files(&self) -> Vec<String> {
        let long = self.files.iter().filter(|file| file.lines > FILE_LINES_MAX);
        long.map(|file| format!("src/{}: {} lines without tests, at most {FILE_LINES_MAX}", file.path, file.lines))
            .collect()
    }

    pub(super) fn long_functions(&self) -> Vec<String> {
        let long = self.long_functions.iter().map(|function| {
            let path = &self.files[function.file].path;
            format!("src/{path}: `{}` has {} lines, at most {FUNCTION_LINES_MAX}", function.name, function.lines)
        });
        long.collect()
    }

    /// Imports of a room by files whose path begins so.
    pub(super) fn imports_of_room(&self, room: &str, importers: &[&str]) -> BTreeSet<String> {
        let mut wrong = BTreeSet::new();
        for (mention, resolution) in &self.mentions {
            let path = &self.files[mention.file].path;
            let is_item = |target: &Target| matches!(target, Target::Item(file) if self.files[*file].room == room);
            let is_module = |module: &Vec<String>| module.first().is_some_and(|first| first == room);
            if importers.iter().any(|importer| path.starts_with(importer))
                && (resolution.targets.iter().any(is_item) || resolution.modules.iter().any(is_module))
            {
                wrong.insert(format!("{}: not here, of `{room}`", self.place(mention)));
            }
        }
        wrong
    }

    pub(super) fn files_that_mention(&self, word: &str, rooms: &[&str]) -> Vec<&str> {
        let files = self.files.iter().filter(|file| rooms.contains(&file.room.as_str()));
        files.filter(|file| file.code.to_lowercase().contains(word)).map(|file| file.path.as_str()).collect()
    }
}

impl Floors {
    fn floor(&self, room: &str) -> Option<usize> {
        self.floors.iter().position(|rooms| rooms.contains(&room))
    }
}

/// Tarjan's strongly connected components.
fn strong_components(edges: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    struct Search<'a> {
        edges: &'a [BTreeSet<usize>],
        indices: Vec<Option<usize>>,
        lows: Vec<usize>,
        stack: Vec<usize>,
        visited: usize,
        components: Vec<Vec<usize>>,
    }
    impl Search<'_> {
        fn visit(&mut self, node: usize) {
            let index = self.visited;
            self.visited += 1;
            (self.indices[node], self.lows[node]) = (Some(index), index);
            self.stack.push(node);
            for &next in &self.edges[node] {
                match self.indices[next] {
                    None => {
                        self.visit(next);
                        self.lows[node] = self.lows[node].min(self.lows[next]);
                    }
                    Some(seen) if self.stack.contains(&next) => self.lows[node] = self.lows[node].min(seen),
                    Some(_) => {}
                }
            }
            if self.lows[node] == index {
                let at = self.stack.iter().position(|other| *other == node).unwrap_or_default();
                self.components.push(self.stack.split_off(at));
            }
        }
    }
    let count = edges.len();
    let (indices, lows) = (vec![None; count], vec![0; count]);
    let mut search = Search { edges, indices, lows, stack: Vec::new(), visited: 0, components: Vec::new() };
    for node in 0..count {
        if search.indices[node].is_none() {
            search.visit(node);
        }
    }
    search.components
}
