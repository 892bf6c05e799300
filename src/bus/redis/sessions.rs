//! Who has which session, in Redis: one key for each session, one for all processes, and one for each process with what
//! it is to be told. No call touches two of them together, so each may be in another slot.

use fred::clients::Client;
use fred::interfaces::KeysInterface;
use fred::types::scripts::Script;
use fred::types::{Expiration, SetOptions};

use super::super::BusError;
use super::super::peers::{Alive, ENTRY, LEASE, Peer, TOLD};
use super::names::Names;
use super::store::{PIPELINE, evaluate, garbled, unavailable};

/// The scripts and the names of the keys.
pub(super) struct Sessions {
    client: Client,
    names: Names,
    alive: Script,
    disown: Script,
    lose: Script,
    losers: Script,
}

impl Sessions {
    pub(super) fn new(client: Client, names: Names) -> Self {
        Self {
            client,
            names,
            alive: Script::from_lua(include_str!("alive.lua")),
            disown: Script::from_lua(include_str!("disown.lua")),
            lose: Script::from_lua(include_str!("lose.lua")),
            losers: Script::from_lua(include_str!("losers.lua")),
        }
    }

    pub(super) async fn alive(&self, peer: &Peer) -> Result<Alive, BusError> {
        let key = self.names.peers();
        let process = peer.process.clone();
        let arguments = vec![process.clone(), peer.address.to_string(), LEASE.as_millis().to_string()];
        let answer = self.run(&self.alive, key, arguments).await?;
        let (known, rest) = answer.split_first().ok_or_else(garbled)?;
        let peer = |pair: &[String]| Some(Peer { process: pair[0].clone(), address: pair[1].parse().ok()? });
        // What another release wrote and cannot be read is nobody to ask.
        let peers = rest.chunks_exact(2).filter_map(peer).collect();
        let losers = self.run(&self.losers, self.names.losers(&process), Vec::new()).await?;
        Ok(Alive { peers, known: known == "1", losers })
    }

    pub(super) async fn own(&self, session: &str, process: &str) -> Result<Option<String>, BusError> {
        let entry = Some(Expiration::EX(seconds()));
        let set = self.client.set::<Option<String>, _, _>(
            self.names.session(session),
            process,
            entry,
            Some(SetOptions::NX),
            true,
        );
        set.await.map_err(unavailable)
    }

    pub(super) async fn name(&self, sessions: &[String], process: &str) -> Result<(), BusError> {
        for part in sessions.chunks(PIPELINE) {
            let pipeline = self.client.pipeline();
            for session in part {
                let entry = Some(Expiration::EX(seconds()));
                pipeline
                    .set::<(), _, _>(self.names.session(session), process, entry, None, false)
                    .await
                    .map_err(unavailable)?;
            }
            pipeline.all::<Vec<Option<String>>>().await.map_err(unavailable)?;
        }
        Ok(())
    }

    pub(super) async fn owner(&self, session: &str) -> Result<Option<String>, BusError> {
        self.client.get(self.names.session(session)).await.map_err(unavailable)
    }

    pub(super) async fn disown(&self, session: &str, process: &str) -> Result<(), BusError> {
        self.run(&self.disown, self.names.session(session), vec![process.to_owned()]).await.map(|_| ())
    }

    pub(super) async fn lose(&self, session: &str, owner: &str) -> Result<(), BusError> {
        let arguments = vec![session.to_owned(), TOLD.to_string(), seconds().to_string()];
        self.run(&self.lose, self.names.losers(owner), arguments).await.map(|_| ())
    }

    async fn run(&self, script: &Script, key: String, arguments: Vec<String>) -> Result<Vec<String>, BusError> {
        evaluate(&self.client, script, vec![key], arguments).await.map_err(unavailable)
    }
}

fn seconds() -> i64 {
    i64::try_from(ENTRY.as_secs()).unwrap_or(i64::MAX)
}
