//! One registered device: its address, its token, the certificate it was given and its keys.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::{Response, Status};

use super::{
    ClientError, Inbox, Keys, Pack, codes,
    door::{Bearer, Door, Unary},
    granted, verify,
};
use crate::{
    address::{DeviceAddress, Domain, UserAddress},
    proto::{
        skiserver::{AcquireAuthCodeRequest, LoginRequest},
        skissm::{Certificate, RegisterUserRequest, RegisterUserResponse},
    },
};

/// A call that is not answered within this time is given up. What it caused is unknown then.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Who registers.
#[derive(Debug, Clone)]
pub struct Who {
    /// The id asked for.
    pub user_id: String,
    /// The name that others see.
    pub user_name: String,
    /// Unique among the user's devices.
    pub device_id: String,
    /// Where the auth code goes.
    pub authenticator: String,
}

impl Who {
    /// A user of that id, reached at an address of the same name.
    pub fn new(user_id: &str, device_id: &str) -> Self {
        Self {
            user_id: user_id.to_owned(),
            user_name: user_id.chars().take(12).collect(),
            device_id: device_id.to_owned(),
            authenticator: format!("mailto:{user_id}@people.test"),
        }
    }

    /// The request that registers this device, with fresh pre-keys.
    pub fn request(&self, auth_code: String, keys: &Keys) -> RegisterUserRequest {
        RegisterUserRequest {
            user_name: self.user_name.clone(),
            user_id: self.user_id.clone(),
            device_id: self.device_id.clone(),
            authenticator: self.authenticator.clone(),
            auth_code,
            e2ee_pack_id: keys.pack().id,
            identity_key_public: Some(keys.identity().clone()),
            signed_pre_key_public: Some(keys.signed_pre_key(1)),
            one_time_pre_key_list: keys.first_opks(),
        }
    }
}

/// One registered device. Copies are the same device.
#[derive(Clone)]
pub struct Device {
    door: Door,
    address: DeviceAddress,
    bearer: Bearer,
    registration: Arc<RegisterUserResponse>,
    certificate: Arc<Certificate>,
    keys: Arc<Keys>,
}

impl Device {
    /// Asks for an auth code, reads it from the node's file, registers with fresh keys and checks the answer.
    pub async fn register(door: &Door, who: &Who, pack: Pack) -> Result<Self, ClientError> {
        let keys = Keys::generate(pack)?;
        let code = auth_code(door, &who.authenticator).await?;
        let request = who.request(code, &keys);
        Self::register_with(door, request, keys).await
    }

    /// Registers with a given request, whose public keys belong to `keys`.
    pub async fn register_with(
        door: &Door,
        request: RegisterUserRequest,
        keys: Keys,
    ) -> Result<Self, ClientError> {
        let user = UserAddress {
            domain: door.domain().clone(),
            user_id: request.user_id.clone(),
        };
        let address = user
            .device(&request.device_id)
            .map_err(|error| ClientError::Setup(error.to_string()))?;
        let mut unary = door.unary(Bearer::default());
        let answer = answered("RegisterUser", unary.register_user(request)).await?;
        granted("RegisterUser", answer.code, &answer.msg)?;
        verify::registration(&answer, &address)?;
        Ok(Self {
            door: door.clone(),
            address,
            bearer: Bearer::new(&answer.auth)?,
            certificate: Arc::new(answer.server_cert.clone().unwrap_or_default()),
            registration: Arc::new(answer),
            keys: Arc::new(keys),
        })
    }

    /// The same device with a new token. The old one stays valid.
    pub async fn login(&self) -> Result<Self, ClientError> {
        let request = LoginRequest {
            user_address: Some(self.address.to_proto()),
            password: self.registration.password.clone(),
        };
        let mut unary = self.door.unary(Bearer::default());
        let answer = answered("Login", unary.login(request)).await?;
        granted("Login", answer.code, &answer.msg)?;
        Ok(self.with_token(Bearer::new(&answer.auth)?))
    }

    /// The same device with other credentials.
    #[must_use]
    pub fn with_token(&self, bearer: Bearer) -> Self {
        Self {
            bearer,
            ..self.clone()
        }
    }

    /// Its address.
    pub fn address(&self) -> &DeviceAddress {
        &self.address
    }

    /// The domain that it is registered at.
    pub fn domain(&self) -> &Domain {
        self.address.domain()
    }

    /// The door that it uses.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The certificate that it was given when it registered; every signature is checked with its key.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The whole answer to its registration.
    pub fn registration(&self) -> &RegisterUserResponse {
        &self.registration
    }

    /// All unary methods, with its token.
    pub fn unary(&self) -> Unary {
        self.door.unary(self.bearer.clone())
    }

    /// Opens its stream. Nothing but heartbeats comes before [`Inbox::sync`] or, without it, ten seconds.
    pub async fn open(&self) -> Result<Inbox, ClientError> {
        Inbox::open(self.door.bidi(self.bearer.clone()), self.address.clone()).await
    }
}

/// Asks for an auth code and reads it from the node's file.
pub async fn auth_code(door: &Door, authenticator: &str) -> Result<String, ClientError> {
    let start = codes::end(door.auth_codes());
    let request = AcquireAuthCodeRequest {
        authenticator: authenticator.to_owned(),
    };
    let mut unary = door.unary(Bearer::default());
    let answer = answered("AcquireAuthCode", unary.acquire_auth_code(request)).await?;
    granted("AcquireAuthCode", answer.code, &answer.msg)?;
    codes::wait(door.auth_codes(), start, authenticator, PATIENCE).await
}

/// The answer of a unary call, if it comes in time.
pub async fn answered<T>(
    rpc: &'static str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, ClientError> {
    match timeout(PATIENCE, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(ClientError::Late(rpc)),
    }
}
