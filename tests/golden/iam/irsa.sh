#!/bin/sh
set -eu

# edge: ServiceAccount channels/eu-edge
aws iam get-role --role-name eu-edge >/dev/null 2>&1 ||
  aws iam create-role --role-name eu-edge --path / --assume-role-policy-document '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/A1B2"},"Action":"sts:AssumeRoleWithWebIdentity","Condition":{"StringEquals":{"oidc.eks.eu-west-1.amazonaws.com/id/A1B2:aud":"sts.amazonaws.com","oidc.eks.eu-west-1.amazonaws.com/id/A1B2:sub":"system:serviceaccount:channels:eu-edge"}}}]}'
aws iam put-role-policy --role-name eu-edge --policy-name realtime-channels-eu-edge-access --policy-document '{"Version":"2012-10-17","Statement":[{"Sid":"Stream","Effect":"Allow","Action":["kinesis:DescribeStreamSummary","kinesis:PutRecords"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/rtc-channels-eu-*"}]}'

# dispatcher: ServiceAccount channels/eu-dispatcher
aws iam get-role --role-name eu-hooks >/dev/null 2>&1 ||
  aws iam create-role --role-name eu-hooks --path /teams/ --assume-role-policy-document '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/A1B2"},"Action":"sts:AssumeRoleWithWebIdentity","Condition":{"StringEquals":{"oidc.eks.eu-west-1.amazonaws.com/id/A1B2:aud":"sts.amazonaws.com","oidc.eks.eu-west-1.amazonaws.com/id/A1B2:sub":"system:serviceaccount:channels:eu-dispatcher"}}}]}'
aws iam put-role-policy --role-name eu-hooks --policy-name realtime-channels-eu-dispatcher-access --policy-document '{"Version":"2012-10-17","Statement":[{"Sid":"Stream","Effect":"Allow","Action":["kinesis:DescribeStreamSummary","kinesis:GetRecords","kinesis:GetShardIterator","kinesis:ListShards"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/rtc-channels-eu-*"}]}'

# operator: ServiceAccount realtime-operator/realtime-operator
aws iam get-role --role-name realtime-operator >/dev/null 2>&1 ||
  aws iam create-role --role-name realtime-operator --path / --assume-role-policy-document '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Federated":"arn:aws:iam::123456789012:oidc-provider/oidc.eks.eu-west-1.amazonaws.com/id/A1B2"},"Action":"sts:AssumeRoleWithWebIdentity","Condition":{"StringEquals":{"oidc.eks.eu-west-1.amazonaws.com/id/A1B2:aud":"sts.amazonaws.com","oidc.eks.eu-west-1.amazonaws.com/id/A1B2:sub":"system:serviceaccount:realtime-operator:realtime-operator"}}}]}'
aws iam put-role-policy --role-name realtime-operator --policy-name realtime-channels-eu-operator-access --policy-document '{"Version":"2012-10-17","Statement":[{"Sid":"Stream","Effect":"Allow","Action":["kinesis:AddTagsToStream","kinesis:CreateStream","kinesis:DescribeStreamSummary","kinesis:GetRecords","kinesis:GetShardIterator","kinesis:IncreaseStreamRetentionPeriod","kinesis:ListShards","kinesis:ListTagsForStream","kinesis:RemoveTagsFromStream","kinesis:StartStreamEncryption","kinesis:UpdateShardCount","kinesis:UpdateStreamMode"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/rtc-channels-eu-*"}]}'
