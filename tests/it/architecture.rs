//! Which file may import which: rooms import downwards only, files in no circle, and each client has its rooms.
//!
//! A file imports another when a path in it, through whatever re-exports, ends at an item that the other defines.
//! Declarations (`mod x;`), re-exports and a `mod.rs` that uses what is below it make no circle.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::OnceLock;

use syn::visit::{self, Visit};
use syn::{Item, UseTree, Visibility};

use crate::source_tree::{LIBRARY, SourceFile, line_range, parse_sources, read_sources, room_of, token_paths};

/// Rooms by floor, lowest first: a room imports only from floors below its own.
struct Floors {
    /// The folder whose rooms these are, with `/` at its end; empty for `src/` itself.
    folder: &'static str,
    floors: &'static [&'static [&'static str]],
}

/// The floors of `src/`. A folder or file of `src/` that is not here fails the test.
const FLOORS: Floors = Floors {
    folder: "",
    floors: &[
        &["config"],
        &["protocol", "api", "process"],
        &["kinesis", "bus", "kubernetes", "desired", "gate"],
        &["edge", "dispatcher", "prober"],
        &["operator", "rehearsal", "bench"],
        &["cli"],
    ],
};

/// The floors inside the edge.
const EDGE_FLOORS: Floors = Floors {
    folder: "edge/",
    floors: &[
        &["error", "close_reason", "drop_reason"],
        &["metrics"],
        &["apps"],
        &["session"],
        &["recorder"],
        &["hub"],
        &["pusher"],
        &["transport"],
        &["relay", "http_api"],
        &["http"],
        &["server"],
    ],
};

/// Whether the floors of the edge hold. They cannot before its files stand in those rooms; from then on they must, and
/// the test asks for it.
const EDGE_FLOORS_HOLD: bool = true;

/// A type or function that stands for a client, by every path of its crate that leads to it, and the rooms that may use
/// it. A path of one part is a whole crate.
type Client = (&'static [&'static str], &'static [&'static str]);

const CLIENTS: &[Client] = &[
    (&["aws_sdk_kinesis"], &["kinesis"]),
    (&["aws_config"], &["kinesis"]),
    (&["aws_smithy_http_client"], &["kinesis"]),
    (&["kube::Client", "kube::client::Client"], &["kubernetes", "operator", "cli"]),
    (&["kube::Api", "kube::api::Api"], &["kubernetes", "operator", "cli"]),
    (&["reqwest"], &["dispatcher", "prober", "rehearsal"]),
    (
        &[
            "tokio_tungstenite::client_async",
            "tokio_tungstenite::client_async_with_config",
            "tokio_tungstenite::connect_async",
            "tokio_tungstenite::connect_async_with_config",
        ],
        &["prober"],
    ),
    (&["ferrokinesis"], &["rehearsal"]),
    (&["fred"], &["bus"]),
];

/// Files that work on the validated cluster. What they import of `api` would be a part of the raw manifest.
const AFTER_VALIDATION: &[&str] = &[
    "desired/cluster.rs",
    "desired/environment.rs",
    "desired/render/",
    "operator/pods.rs",
    "prober/plan.rs",
    "rehearsal/kubelet_double.rs",
    "rehearsal/overrides.rs",
    "rehearsal/page.rs",
];

/// Lines of a file without its tests.
const FILE_LINES_MAX: usize = 500;

/// Lines of a function, from its signature to its end.
const FUNCTION_LINES_MAX: usize = 100;

/// Files in circles today, one a line: a list that only gets shorter.
const CIRCLES_FILE: &str = "tests/it/circles.txt";

/// A `use` of one name, as its module sees it.
struct Import {
    name: String,
    path: Vec<String>,
    is_glob: bool,
}

#[derive(Default)]
struct Module {
    file: usize,
    definitions: HashSet<String>,
    imports: Vec<Import>,
}

/// The end of a path.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Target {
    /// An item that this file defines.
    Item(usize),
    Module(Vec<String>),
    /// A path into another crate.
    External(Vec<String>),
}

/// Ends of one path in all name spaces, and the modules on its way.
#[derive(Clone, Default)]
struct Resolution {
    targets: BTreeSet<Target>,
    modules: BTreeSet<Vec<String>>,
}

/// A path that stands in a file.
struct Mention {
    file: usize,
    line: usize,
    module: Vec<String>,
    path: Vec<String>,
    is_use: bool,
    is_reexport: bool,
}

/// A function of more than [`FUNCTION_LINES_MAX`] lines.
struct LongFunction {
    file: usize,
    name: String,
    lines: usize,
}

/// Every module, and every path that a file mentions.
#[derive(Default)]
struct Graph {
    files: Vec<FileFacts>,
    modules: BTreeMap<Vec<String>, Module>,
    mentions: Vec<(Mention, Resolution)>,
    long_functions: Vec<LongFunction>,
}

struct FileFacts {
    path: String,
    room: String,
    module: Vec<String>,
    lines: usize,
    code: String,
}

impl Graph {
    fn new(files: &[SourceFile]) -> Self {
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
                let (mut modules, mut pending) = (BTreeSet::new(), Vec::new());
                let find = if mention.is_use { resolve_use } else { resolve };
                let targets = find(&graph.modules, &mention.module, &mention.path, &mut modules, &mut pending);
                Resolution { targets, modules }
            });
            let resolution = resolution.clone();
            graph.mentions.push((mention, resolution));
        }
        graph
    }

    fn parse<P: AsRef<str>, T: AsRef<str>>(sources: &[(P, T)]) -> Self {
        Self::new(&parse_sources(sources))
    }

    fn place(&self, mention: &Mention) -> String {
        format!("src/{}:{}: `{}`", self.files[mention.file].path, mention.line, mention.path.join("::"))
    }

    /// Files that each file imports.
    fn file_imports(&self) -> Vec<BTreeSet<usize>> {
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
    fn circles(&self) -> Vec<Vec<&str>> {
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
    fn unknown_rooms(&self, floors: &Floors) -> BTreeSet<&str> {
        let rooms = self.files.iter().map(|file| room_of(&file.path, floors.folder));
        rooms.filter(|room| !room.is_empty() && floors.floor(room).is_none()).collect()
    }

    /// Imports that do not go down. The folder's own module stands above its rooms.
    fn upward_imports(&self, floors: &Floors) -> BTreeSet<String> {
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

    fn misplaced_clients(&self, clients: &[Client]) -> BTreeSet<String> {
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

    fn long_files(&self) -> Vec<String> {
        let long = self.files.iter().filter(|file| file.lines > FILE_LINES_MAX);
        long.map(|file| format!("src/{}: {} lines without tests, at most {FILE_LINES_MAX}", file.path, file.lines))
            .collect()
    }

    fn long_functions(&self) -> Vec<String> {
        let long = self.long_functions.iter().map(|function| {
            let path = &self.files[function.file].path;
            format!("src/{path}: `{}` has {} lines, at most {FUNCTION_LINES_MAX}", function.name, function.lines)
        });
        long.collect()
    }

    /// Imports of a room by files whose path begins so.
    fn imports_of_room(&self, room: &str, importers: &[&str]) -> BTreeSet<String> {
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

    fn files_that_mention(&self, word: &str, rooms: &[&str]) -> Vec<&str> {
        let files = self.files.iter().filter(|file| rooms.contains(&file.room.as_str()));
        files.filter(|file| file.code.to_lowercase().contains(word)).map(|file| file.path.as_str()).collect()
    }
}

impl Floors {
    fn floor(&self, room: &str) -> Option<usize> {
        self.floors.iter().position(|rooms| rooms.contains(&room))
    }
}

/// Follows `path` from inside `module`. `pending` holds the names that are looked up already: globs may go round.
fn resolve(
    modules: &BTreeMap<Vec<String>, Module>,
    module: &[String],
    path: &[String],
    named: &mut BTreeSet<Vec<String>>,
    pending: &mut Vec<(Vec<String>, String)>,
) -> BTreeSet<Target> {
    let mut base = module.to_vec();
    let mut rest = path;
    let mut is_anchored = false;
    while let Some((first, others)) = rest.split_first() {
        match first.as_str() {
            "crate" => base.clear(),
            name if name == LIBRARY => base.clear(),
            "self" => {}
            "super" => _ = base.pop(),
            _ => break,
        }
        (is_anchored, rest) = (true, others);
    }
    if is_anchored {
        return descend(modules, base, rest, named, pending);
    }
    let Some((first, others)) = path.split_first() else { return BTreeSet::new() };
    let found = look_up(modules, module, first, named, pending);
    if !found.is_empty() {
        return follow(modules, found, others, named, pending);
    }
    if others.is_empty() {
        // Else a local variable, or of the prelude.
        return external_globs(modules, module, first);
    }
    BTreeSet::from([Target::External(path.to_vec())])
}

/// Follows the path of a `use`, in which a lone name that the module does not have is a crate.
fn resolve_use(
    modules: &BTreeMap<Vec<String>, Module>,
    module: &[String],
    path: &[String],
    named: &mut BTreeSet<Vec<String>>,
    pending: &mut Vec<(Vec<String>, String)>,
) -> BTreeSet<Target> {
    let targets = resolve(modules, module, path, named, pending);
    let is_crate = targets.is_empty() && path.len() == 1;
    if is_crate { BTreeSet::from([Target::External(path.to_vec())]) } else { targets }
}

fn descend(
    modules: &BTreeMap<Vec<String>, Module>,
    base: Vec<String>,
    rest: &[String],
    named: &mut BTreeSet<Vec<String>>,
    pending: &mut Vec<(Vec<String>, String)>,
) -> BTreeSet<Target> {
    named.insert(base.clone());
    let Some((first, others)) = rest.split_first() else { return BTreeSet::from([Target::Module(base)]) };
    let found = look_up(modules, &base, first, named, pending);
    if found.is_empty() {
        // A macro may have made the item.
        return modules.get(&base).map(|module| Target::Item(module.file)).into_iter().collect();
    }
    follow(modules, found, others, named, pending)
}

fn follow(
    modules: &BTreeMap<Vec<String>, Module>,
    found: BTreeSet<Target>,
    rest: &[String],
    named: &mut BTreeSet<Vec<String>>,
    pending: &mut Vec<(Vec<String>, String)>,
) -> BTreeSet<Target> {
    // Before `::`, a name of both a module and a function is the module.
    let has_module = !rest.is_empty() && found.iter().any(|target| matches!(target, Target::Module(_)));
    let mut targets = BTreeSet::new();
    for target in found {
        match target {
            Target::Module(module) => targets.extend(descend(modules, module, rest, named, pending)),
            _ if has_module => {}
            Target::Item(file) => _ = targets.insert(Target::Item(file)),
            Target::External(path) => _ = targets.insert(Target::External([path.as_slice(), rest].concat())),
        }
    }
    targets
}

/// Finds a name in a module: a child, an item, an import, or an item of a glob import.
fn look_up(
    modules: &BTreeMap<Vec<String>, Module>,
    module: &[String],
    name: &str,
    named: &mut BTreeSet<Vec<String>>,
    pending: &mut Vec<(Vec<String>, String)>,
) -> BTreeSet<Target> {
    let key = (module.to_vec(), name.to_owned());
    let (Some(content), false) = (modules.get(module), pending.contains(&key)) else { return BTreeSet::new() };
    pending.push(key);
    let mut targets = BTreeSet::new();
    let child = [module, &[name.to_owned()]].concat();
    if modules.contains_key(&child) {
        targets.insert(Target::Module(child));
    }
    if content.definitions.contains(name) {
        targets.insert(Target::Item(content.file));
    }
    for import in content.imports.iter().filter(|import| !import.is_glob && import.name == name) {
        targets.extend(resolve_use(modules, module, &import.path, named, pending));
    }
    if targets.is_empty() {
        for import in content.imports.iter().filter(|import| import.is_glob) {
            for target in resolve_use(modules, module, &import.path, &mut BTreeSet::new(), pending) {
                if let Target::Module(from) = target {
                    targets.extend(look_up(modules, &from, name, named, pending));
                }
            }
        }
    }
    pending.pop();
    targets
}

/// A name that a module does not define may come from a glob import of another crate.
fn external_globs(modules: &BTreeMap<Vec<String>, Module>, module: &[String], name: &str) -> BTreeSet<Target> {
    let imports = modules.get(module).map_or(&[][..], |module| &module.imports);
    let globs = imports.iter().filter(|import| import.is_glob);
    let targets = globs.flat_map(|glob| resolve_use(modules, module, &glob.path, &mut BTreeSet::new(), &mut vec![]));
    let external = targets.filter_map(|target| match target {
        Target::External(path) => Some(Target::External([path.as_slice(), &[name.to_owned()]].concat())),
        _ => None,
    });
    external.collect()
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

/// Reads the items and paths of one file.
struct FileReader<'a> {
    graph: &'a mut Graph,
    mentions: &'a mut Vec<Mention>,
    file: usize,
    module: Vec<String>,
}

impl FileReader<'_> {
    fn read_module(&mut self, module: Vec<String>, items: &[Item]) {
        let outer = std::mem::replace(&mut self.module, module);
        let mut content = Module { file: self.file, ..Module::default() };
        content.definitions.extend(items.iter().filter_map(item_name));
        self.graph.modules.insert(self.module.clone(), content);
        for item in items {
            self.visit_item(item);
        }
        self.module = outer;
    }

    fn add_mention(&mut self, path: Vec<String>, line: usize) {
        let module = self.module.clone();
        self.mentions.push(Mention { file: self.file, line, module, path, is_use: false, is_reexport: false });
    }

    fn read_use(&mut self, tree: &UseTree, prefix: &[String], is_reexport: bool) {
        let (name, last) = match tree {
            UseTree::Path(path) => {
                return self.read_use(&path.tree, &[prefix, &[path.ident.to_string()]].concat(), is_reexport);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.read_use(tree, prefix, is_reexport));
            }
            UseTree::Name(name) => (name.ident.to_string(), Some(name.ident.to_string())),
            UseTree::Rename(rename) => (rename.rename.to_string(), Some(rename.ident.to_string())),
            UseTree::Glob(_) => (String::new(), None),
        };
        let mut path = prefix.to_vec();
        let (mut name, is_glob) = (name, last.is_none());
        match last.as_deref() {
            Some("self") if !prefix.is_empty() && name == "self" => name = prefix.last().cloned().unwrap_or_default(),
            Some("self") if !prefix.is_empty() => {}
            Some(last) => path.push(last.to_owned()),
            None => {}
        }
        let (line, module) = (*line_range(tree).start(), self.module.clone());
        let mention = Mention { file: self.file, line, module, path: path.clone(), is_use: true, is_reexport };
        self.mentions.push(mention);
        if let Some(module) = self.graph.modules.get_mut(&self.module) {
            module.imports.push(Import { name, path, is_glob });
        }
    }

    fn check_length(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let lines = line_range(body).end() + 1 - line_range(signature).start();
        if lines > FUNCTION_LINES_MAX {
            let name = signature.ident.to_string();
            self.graph.long_functions.push(LongFunction { file: self.file, name, lines });
        }
    }
}

impl<'ast> Visit<'ast> for FileReader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if let Some((_, items)) = &item.content {
            let module = [self.module.as_slice(), &[item.ident.to_string()]].concat();
            self.read_module(module, items);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.read_use(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add_mention(segments, *line_range(path).start());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        for (path, line) in token_paths(call.tokens.clone()) {
            self.add_mention(path, line);
        }
        visit::visit_macro(self, call);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check_length(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check_length(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.check_length(&item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }

    /// `derive` and its like name no file.
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    /// `pub(in crate::x)` uses nothing of `x`.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

fn item_name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

/// The graph of `src/`, made once.
fn source_graph() -> &'static Graph {
    static GRAPH: OnceLock<Graph> = OnceLock::new();
    GRAPH.get_or_init(|| Graph::parse(&read_sources()))
}

fn assert_none(wrong: impl IntoIterator<Item = impl AsRef<str>>) {
    let wrong: Vec<String> = wrong.into_iter().map(|line| line.as_ref().to_owned()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_stands_on_a_floor() {
    assert_none(source_graph().unknown_rooms(&FLOORS));
}

#[test]
fn a_room_imports_only_from_floors_below() {
    assert_none(source_graph().upward_imports(&FLOORS));
}

#[test]
fn a_room_of_the_edge_imports_only_from_floors_below() {
    let unknown = source_graph().unknown_rooms(&EDGE_FLOORS);
    if EDGE_FLOORS_HOLD {
        assert_none(unknown);
        assert_none(source_graph().upward_imports(&EDGE_FLOORS));
    } else {
        assert!(!unknown.is_empty(), "every file of the edge has its room now: set EDGE_FLOORS_HOLD");
    }
}

#[test]
fn clients_stay_in_their_rooms() {
    assert_none(source_graph().misplaced_clients(CLIENTS));
    for client in CLIENTS {
        let nobody = [(client.0, &[][..])];
        assert!(!source_graph().misplaced_clients(&nobody).is_empty(), "no room uses `{}`: strike it out", client.0[0]);
    }
}

#[test]
fn files_have_one_concern_and_so_few_lines() {
    assert_none(source_graph().long_files());
}

#[test]
fn functions_have_one_concern_and_so_few_lines() {
    assert_none(source_graph().long_functions());
}

#[test]
fn nothing_after_validation_reads_a_manifest() {
    assert_none(source_graph().imports_of_room("api", AFTER_VALIDATION));
    for file in AFTER_VALIDATION {
        let exists = source_graph().files.iter().any(|found| found.path.starts_with(file));
        assert!(exists, "src/{file} does not exist: correct AFTER_VALIDATION");
    }
}

#[test]
fn servers_do_not_mention_the_prober() {
    assert_none(source_graph().files_that_mention("probe", &["edge", "dispatcher"]));
}

/// Differences between the circles and the committed list of their files.
fn compare_circles(circles: &[Vec<&str>], listed: &BTreeSet<&str>) -> Vec<String> {
    let today: BTreeSet<&str> = circles.iter().flatten().copied().collect();
    let mut wrong: Vec<String> = Vec::new();
    for circle in circles {
        let news: Vec<&str> = circle.iter().filter(|file| !listed.contains(*file)).copied().collect();
        if !news.is_empty() {
            wrong.push(format!("in a circle, and not before: {}; the circle: {}", news.join(", "), circle.join(", ")));
        }
    }
    for file in listed.difference(&today) {
        wrong.push(format!("src/{file} is in no circle any more: strike it out in {CIRCLES_FILE}"));
    }
    wrong
}

#[test]
fn no_more_files_are_in_circles() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(CIRCLES_FILE);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let listed: BTreeSet<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let circles = source_graph().circles();
    for circle in &circles {
        println!("circle of {}: {}", circle.len(), circle.join(", "));
    }
    let today: BTreeSet<&str> = circles.iter().flatten().copied().collect();
    // A renamed file takes the place of its old name; the list never grows.
    if std::env::var_os("UPDATE_LIMITS").is_some() && (text.is_empty() || today.len() <= listed.len()) {
        let head =
            "# Files of src/ that import each other in a circle. `UPDATE_LIMITS=1 cargo test --test it` strikes out.\n";
        let lines: Vec<&str> = today.iter().copied().collect();
        std::fs::write(&path, format!("{head}{}\n", lines.join("\n"))).expect("the list of circles");
        return;
    }
    assert_none(compare_circles(&circles, &listed));
}

/// The paths that each file of some sources imports.
fn imported(sources: &[(&str, &str)]) -> Vec<String> {
    let graph = Graph::parse(sources);
    let mut imports = Vec::new();
    for (from, targets) in graph.file_imports().iter().enumerate() {
        imports.extend(targets.iter().map(|to| format!("{} > {}", graph.files[from].path, graph.files[*to].path)));
    }
    imports.sort();
    imports
}

#[test]
fn an_import_leads_to_the_file_that_defines_the_item() {
    let bus = ("bus/mod.rs", "mod memory; mod name; pub use memory::{Bus, close as end}; pub use name::*;");
    let memory = ("bus/memory.rs", "pub struct Bus; pub fn close() {} pub mod code { pub const GONE: u8 = 1; }");
    let name = ("bus/name.rs", "made! { Key }");
    let others = [("lib.rs", "pub mod bus; pub mod edge; pub mod kinesis;"), ("kinesis.rs", "pub struct Client;")];
    let of = |text| imported(&[bus, memory, name, others[0], others[1], ("edge.rs", text)]);
    let through_memory = ["edge.rs > bus/memory.rs"];
    assert_eq!(of("use crate::{bus::{Bus}, kinesis};"), through_memory);
    let nested = of("use crate::{bus::{self, memory::{code, self as m}}, kinesis::Client}; fn f() { bus::end() }");
    assert_eq!(nested, ["edge.rs > bus/memory.rs", "edge.rs > kinesis.rs"]);
    assert_eq!(of("use super::bus as b; type A = Vec<b::Bus>;"), through_memory);
    assert_eq!(of("use crate::bus::*; fn f() { end() }"), through_memory);
    assert_eq!(of("fn f() { log!(\"{}\", crate::bus::Bus::new()) }"), through_memory);
    assert_eq!(of("fn f() { use crate::bus::Bus as _; }"), through_memory);
    assert_eq!(of("mod inner { fn f() -> super::super::bus::Bus { } }"), through_memory);
    assert_eq!(of("use crate::bus::memory::code; const A: u8 = code::GONE;"), through_memory);
    assert_eq!(of("fn f() { kinesis::open() } use crate::{bus::end as kinesis, kinesis};"), nested);
    assert_eq!(of("use crate::bus::name::Key;"), ["edge.rs > bus/name.rs"]);
    for none in [
        "use crate::bus;",
        "pub use crate::bus::Bus;",
        "use std::fmt; use Bus; pub(in crate::bus) fn f() {}",
        "fn f(end: u8) { end }",
    ] {
        assert_eq!(of(none), [""; 0], "{none}");
    }
}

#[test]
fn a_circle_is_seen_and_has_to_be_on_the_list() {
    let circle = [
        ("bus/mod.rs", "mod a; mod b; mod c; pub struct Bus; fn f() { a::f() }"),
        ("bus/a.rs", "use super::{b::g, Bus}; pub fn f() {}"),
        ("bus/b.rs", "pub fn g() { super::c::h() }"),
        ("bus/c.rs", "use super::a; pub fn h() { a::f() }"),
    ];
    let graph = Graph::parse(&circle);
    let circles = graph.circles();
    assert_eq!(circles, [["bus/a.rs", "bus/b.rs", "bus/c.rs"]], "a mod.rs may use its children");
    assert_eq!(compare_circles(&circles, &BTreeSet::from(["bus/a.rs", "bus/b.rs", "bus/c.rs"])), [""; 0]);
    let wrong = compare_circles(&circles, &BTreeSet::from(["bus/a.rs", "bus/b.rs", "bus/d.rs"]));
    assert!(wrong.len() == 2 && wrong[0].contains("not before: bus/c.rs;") && wrong[1].contains("bus/d.rs is in no"));
    assert!(Graph::parse(&circle[..3]).circles().is_empty());
}

#[test]
fn an_import_upwards_is_seen() {
    let of = |path, text| {
        let rooms = [("edge/mod.rs", "mod a; pub struct Edge;"), ("bus/mod.rs", "pub struct Bus;")];
        let sources = [("lib.rs", ""), ("config.rs", ""), rooms[0], rooms[1], (path, text)];
        Graph::parse(&sources).upward_imports(&FLOORS).len()
    };
    assert_eq!(of("bus/a.rs", "use crate::{config::{A, B}, edge::Edge};"), 1);
    assert_eq!(of("bus/a.rs", "pub use crate::edge::Edge;"), 1, "a re-export too");
    assert_eq!(of("dispatcher/a.rs", "fn f(_: crate::edge::Edge) {}"), 1, "of the same floor");
    assert_eq!(of("edge/a.rs", "use super::Edge; use crate::bus::Bus;"), 0);
    assert_eq!(of("main.rs", "fn main() { realtime_operator::edge::run() }"), 0);
    assert_eq!(Graph::parse(&[("stray.rs", ""), ("cli/mod.rs", "")]).unknown_rooms(&FLOORS), BTreeSet::from(["stray"]));
}

#[test]
fn an_import_upwards_inside_the_edge_is_seen() {
    let edge = |session: &str| {
        let sources = [
            ("lib.rs", "mod edge;"),
            ("edge/mod.rs", "mod hub; mod metrics; mod session; pub use session::Session; pub struct Settings;"),
            ("edge/hub/mod.rs", "mod quota; pub use quota::Quota; use super::session::Session;"),
            ("edge/hub/quota.rs", "pub struct Quota; use super::super::metrics::Metrics;"),
            ("edge/metrics.rs", "pub struct Metrics; use crate::bus::Bus;"),
            ("edge/session/mod.rs", session),
            ("bus/mod.rs", "pub struct Bus;"),
        ];
        let graph = Graph::parse(&sources);
        assert_eq!(graph.unknown_rooms(&EDGE_FLOORS), BTreeSet::new());
        graph.upward_imports(&EDGE_FLOORS)
    };
    assert_eq!(edge("pub struct Session; use crate::edge::metrics::Metrics;"), BTreeSet::new());
    let upward = edge("pub struct Session;\nuse super::hub::Quota;");
    assert!(upward.iter().eq(["src/edge/session/mod.rs:2: `super::hub::Quota`: `session` must not import `hub`"]));
    assert!(edge("pub struct Session; use super::Settings;").iter().any(|wrong| wrong.contains("the module above")));
    let stray = Graph::parse(&[("edge/mod.rs", ""), ("edge/drain.rs", ""), ("edge/hub.rs", "")]);
    assert_eq!(stray.unknown_rooms(&EDGE_FLOORS), BTreeSet::from(["drain"]));
}

#[test]
fn a_client_is_recognised_however_it_is_imported() {
    let of = |text| {
        let below = [("bus/mod.rs", "pub use fred as redis;"), ("kubernetes/mod.rs", "pub use kube::Client;")];
        let sources = [("lib.rs", ""), below[0], below[1], ("edge/mod.rs", text)];
        Graph::parse(&sources).misplaced_clients(CLIENTS).len()
    };
    assert!(of("use kube::{ResourceExt, Client};") == 1 && of("use kube::{api::{Api as X, Patch}};") == 1);
    assert!(of("use kube as k; fn f(_: k::api::Api<u8>) {}") == 1 && of("fn f(_: kube::Client) {}") == 1);
    assert!(of("use kube::client::*; fn f(_: Client) {}") == 1 && of("use crate::kubernetes::Client;") == 1);
    assert!(of("use crate::bus::redis; fn f() { redis::connect() }") >= 1 && of("use reqwest;") == 1);
    assert!(of("fn f() { spawn!(reqwest::get(1)) }") == 1 && of("use tokio_tungstenite::{connect_async};") == 1);
    assert_eq!(of("use kube::api::ApiResource; use tokio_tungstenite::WebSocketStream; fn reqwest() {}"), 0);
}

#[test]
fn a_manifest_that_is_read_after_validation_is_seen() {
    let of = |text: &str| {
        let api = [("api/mod.rs", "pub mod cluster; pub use cluster::Spec;"), ("api/cluster.rs", "pub struct Spec;")];
        let desired = [("desired/mod.rs", "pub use crate::api::Spec as Manifest;"), ("desired/render/pods.rs", text)];
        let sources = [("lib.rs", ""), api[0], api[1], desired[0], desired[1]];
        Graph::parse(&sources).imports_of_room("api", AFTER_VALIDATION).len()
    };
    assert!(of("use crate::api::cluster::Spec;") == 1 && of("use crate::api;") == 1);
    assert!(of("fn f(_: &crate::api::Spec) {}") == 1 && of("use super::super::Manifest;") == 1);
    assert_eq!(of("use super::super::ValidCluster; fn f(_: ValidCluster) {}"), 0);
}

#[test]
fn lengths_and_mentions_can_fail() {
    let lines = "let a = 1;\n".repeat(FUNCTION_LINES_MAX - 1);
    let of = |text: String| Graph::parse(&[("edge/a.rs", text)]);
    assert_eq!(of(format!("fn a() {{\n{lines}}}")).long_functions().len(), 1);
    assert_eq!(of(format!("impl A {{ fn a() {{\n{}}}\n}}", &lines[11..])).long_functions().len(), 0);
    let tests = |count: usize| format!("{}#[cfg(test)]\nmod tests {{\n}}\n", "fn a() {}\n".repeat(count));
    assert_eq!(of(tests(FILE_LINES_MAX)).long_files().len(), 0);
    assert_eq!(of(tests(FILE_LINES_MAX + 1)).long_files().len(), 1);
    let mentions = of("// A probe.\nfn a() {}".to_owned());
    assert_eq!(mentions.files_that_mention("probe", &["edge"]), [""; 0]);
    assert_eq!(of("fn a() { ask(\"Prober\") }".to_owned()).files_that_mention("probe", &["edge"]), ["edge/a.rs"]);
}
