//! Session owners in Redis: one key for each session, one for all live processes and one for their loads, and one for each
//! process with its sessions that lost a message. No call uses two of them together, so each may be in another slot.

use fred::clients::Client;
use fred::interfaces::KeysInterface;
use fred::types::scripts::Script;
use fred::types::{Expiration, SetOptions};

use super::super::BusError;
use super::super::load::{EdgeLoad, LOAD_TTL};
use super::super::relay::{HeartbeatResponse, LOST_SENDS_MAX, PEER_LEASE_TTL, RelayPeer, SESSION_ENTRY_TTL};
use super::client::{PIPELINE_COMMANDS_MAX, evaluate_script, malformed_answer, to_bus_error, whole_seconds};
use super::keys::KeySpace;

/// Session owners and heartbeats in one store.
pub(super) struct SessionOwners {
    client: Client,
    names: KeySpace,
    heartbeat_script: Script,
    release_script: Script,
    report_lost_script: Script,
    take_lost_script: Script,
}

impl SessionOwners {
    pub(super) fn new(client: Client, names: KeySpace) -> Self {
        Self {
            client,
            names,
            heartbeat_script: Script::from_lua(include_str!("process_heartbeat.lua")),
            release_script: Script::from_lua(include_str!("session_release.lua")),
            report_lost_script: Script::from_lua(include_str!("lost_send_report.lua")),
            take_lost_script: Script::from_lua(include_str!("lost_send_take.lua")),
        }
    }

    pub(super) async fn send_heartbeat(&self, peer: &RelayPeer) -> Result<HeartbeatResponse, BusError> {
        let key = self.names.peers_key();
        let process = peer.process.clone();
        let arguments = vec![process.clone(), peer.address.to_string(), PEER_LEASE_TTL.as_millis().to_string()];
        let answer = self.run(&self.heartbeat_script, key, arguments).await?;
        let (known, rest) = answer.split_first().ok_or_else(malformed_answer)?;
        let peer = |pair: &[String]| Some(RelayPeer { process: pair[0].clone(), address: pair[1].parse().ok()? });
        // An address that another release wrote in another form is left out: nothing can be relayed to it.
        let peers = rest.chunks_exact(2).filter_map(peer).collect();
        let lost_sends = self.run(&self.take_lost_script, self.names.lost_sends_key(&process), Vec::new()).await?;
        Ok(HeartbeatResponse { peers, was_registered: known == "1", sessions_with_lost_sends: lost_sends })
    }

    /// A load is registered as an address is, with another TTL.
    pub(super) async fn exchange_load(&self, process: &str, load: &EdgeLoad) -> Result<Vec<EdgeLoad>, BusError> {
        let arguments = vec![process.to_owned(), load.to_text(), LOAD_TTL.as_millis().to_string()];
        let answer = self.run(&self.heartbeat_script, self.names.loads_key(), arguments).await?;
        let (_, loads) = answer.split_first().ok_or_else(malformed_answer)?;
        let others = loads.chunks_exact(2).filter(|pair| pair[0] != process);
        Ok(others.filter_map(|pair| EdgeLoad::parse(&pair[1])).collect())
    }

    pub(super) async fn claim_session(&self, session: &str, process: &str) -> Result<Option<String>, BusError> {
        let entry = Some(Expiration::EX(whole_seconds(SESSION_ENTRY_TTL)));
        let set = self.client.set::<Option<String>, _, _>(
            self.names.session_owner_key(session),
            process,
            entry,
            Some(SetOptions::NX),
            true,
        );
        set.await.map_err(to_bus_error)
    }

    pub(super) async fn refresh_sessions(&self, sessions: &[String], process: &str) -> Result<(), BusError> {
        for part in sessions.chunks(PIPELINE_COMMANDS_MAX) {
            let pipeline = self.client.pipeline();
            for session in part {
                let entry = Some(Expiration::EX(whole_seconds(SESSION_ENTRY_TTL)));
                pipeline
                    .set::<(), _, _>(self.names.session_owner_key(session), process, entry, None, false)
                    .await
                    .map_err(to_bus_error)?;
            }
            pipeline.all::<Vec<Option<String>>>().await.map_err(to_bus_error)?;
        }
        Ok(())
    }

    pub(super) async fn session_owner(&self, session: &str) -> Result<Option<String>, BusError> {
        self.client.get(self.names.session_owner_key(session)).await.map_err(to_bus_error)
    }

    pub(super) async fn release_session(&self, session: &str, process: &str) -> Result<(), BusError> {
        self.run(&self.release_script, self.names.session_owner_key(session), vec![process.to_owned()])
            .await
            .map(|_| ())
    }

    pub(super) async fn report_lost_send(&self, session: &str, owner: &str) -> Result<(), BusError> {
        let arguments =
            vec![session.to_owned(), LOST_SENDS_MAX.to_string(), whole_seconds(SESSION_ENTRY_TTL).to_string()];
        self.run(&self.report_lost_script, self.names.lost_sends_key(owner), arguments).await.map(|_| ())
    }

    async fn run(&self, script: &Script, key: String, arguments: Vec<String>) -> Result<Vec<String>, BusError> {
        evaluate_script(&self.client, script, vec![key], arguments).await.map_err(to_bus_error)
    }
}
